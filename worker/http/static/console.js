// Replaces the sections that have changed, and nothing else: focus, open tables, selected text and scrolled regions stay.
const PERIOD_MS = 2000;
// Longer than the worker takes to find out that PostgreSQL does not answer.
const TIMEOUT_MS = 12000;

const live = document.getElementById("live");
const contact = document.getElementById("contact");
const contactText = document.getElementById("contact-text");
const pause = document.getElementById("pause");
// What came from the server last: what the reader has opened since does not count as a change.
const shown = new Map([...live.querySelectorAll("[data-live]")].map((section) => [section.id, section.outerHTML]));
let paused = false;
let refreshing = false;
let lostSince = null;

function tell(text) {
  if (contactText.textContent !== text) contactText.textContent = text;
}

function isSelectedIn(section) {
  const selection = document.getSelection();
  return selection !== null && !selection.isCollapsed && selection.containsNode(section, true);
}

// Elements that a reader can be at, in the order in which they stand; the same one is found by its key.
function stops(section) {
  const found = new Map();
  for (const element of section.querySelectorAll("a, button, summary, .scroll")) {
    const key = [
      element.tagName,
      element.id || element.parentElement.id,
      element.getAttribute("href"),
      element.getAttribute("aria-label"),
    ].join("|");
    if (!found.has(key)) found.set(key, element);
  }
  return found;
}

function replace(old, fresh) {
  for (const details of old.querySelectorAll("details[open]")) {
    const same = fresh.querySelector(`#${CSS.escape(details.id)}`);
    if (same !== null) same.open = true;
  }
  const before = stops(old);
  const places = new Map([...before].map(([key, element]) => [key, [element.scrollTop, element.scrollLeft]]));
  const focused = [...before].find(([, element]) => element === document.activeElement)?.[0];
  old.replaceWith(fresh);
  for (const [key, element] of stops(fresh)) {
    const place = places.get(key);
    if (place !== undefined) [element.scrollTop, element.scrollLeft] = place;
    if (key === focused) element.focus({ preventScroll: true });
  }
}

function show(html) {
  const sections = new DOMParser().parseFromString(html, "text/html").querySelectorAll("[data-live]");
  const ids = new Set([...sections].map((section) => section.id));
  for (const gone of live.querySelectorAll("[data-live]")) if (!ids.has(gone.id)) gone.remove();
  let before = null;
  for (const section of sections) {
    const source = section.outerHTML;
    const old = document.getElementById(section.id);
    if (old === null) {
      if (before === null) live.prepend(section);
      else before.after(section);
    } else if (shown.get(section.id) === source || isSelectedIn(old)) {
      before = old;
      continue;
    } else {
      replace(old, section);
    }
    shown.set(section.id, source);
    before = section;
  }
}

async function refresh() {
  if (paused || document.hidden || refreshing) return;
  refreshing = true;
  try {
    const answer = await fetch("/console/live", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (answer.status === 403) {
      location.reload();
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    const html = await answer.text();
    lostSince = null;
    contact.classList.remove("lost");
    if (paused) return;
    show(html);
    tell("Live");
  } catch {
    lostSince ??= new Date().toLocaleTimeString();
    contact.classList.add("lost");
    tell(`No contact since ${lostSince}`);
  } finally {
    refreshing = false;
  }
}

contact.hidden = false;
tell("Live");
pause.addEventListener("click", () => {
  paused = !paused;
  pause.textContent = paused ? "Go on" : "Pause";
  contact.classList.toggle("paused", paused);
  tell(paused ? "Paused" : "Live");
  refresh();
});
document.addEventListener("visibilitychange", refresh);
setInterval(refresh, PERIOD_MS);
