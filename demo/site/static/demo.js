// What is only of the demo: the stand-in for a sign-in, and the buttons that break things.

import { act, processes, signIn, signOut } from "./api.js";

const find = (id) => document.getElementById(id);
const LOOK_MS = 3_000;
const LABELS = { worker: "Worker", redis: "Redis" };

// `before` runs while the old identity still holds, and may answer that nothing is to happen; `after` when the new one
// does; `failed` when it turns out that it can't be told which one holds.
export function wireDemo({ before, after, failed, announce }) {
  const problem = find("demo-problem");

  async function attempt(work) {
    problem.textContent = "";
    try {
      await work();
    } catch {
      problem.textContent = "This did not work. Try again.";
    }
  }

  let changing = false;
  const buttons = [find("sign-out"), find("sign-in").querySelector("button")];

  function setChanging(value) {
    changing = value;
    for (const button of buttons) {
      if (value) button.setAttribute("aria-disabled", "true");
      else button.removeAttribute("aria-disabled");
    }
  }

  async function change(direction, ask) {
    if (changing) return;
    setChanging(true);
    await attempt(async () => {
      if (!(await before(direction))) return;
      try {
        await ask();
      } catch (error) {
        await failed(direction);
        throw error;
      }
      await after(direction);
    });
    setChanging(false);
  }

  find("sign-in").addEventListener("submit", (event) => {
    event.preventDefault();
    void change("in", () => signIn(Number(find("student").value)));
  });
  find("sign-out").addEventListener("click", () => void change("out", signOut));

  let shown = "";

  async function showProcesses() {
    const list = await processes();
    if (shown === JSON.stringify(list)) return;
    shown = JSON.stringify(list);
    const focused = document.activeElement?.id;
    find("breakables").hidden = list.length === 0;
    find("processes").replaceChildren(
      ...list.map(({ name, pid }) => {
        const item = document.createElement("li");
        const label = LABELS[name] ?? name;
        const state = document.createElement("span");
        state.textContent = pid ? `${label} runs, process ${pid}` : `${label} is stopped`;
        const button = document.createElement("button");
        button.type = "button";
        button.className = "secondary";
        button.id = `break-${name}`;
        button.textContent = pid ? "Stop" : "Start";
        button.setAttribute("aria-label", `${button.textContent} ${label}`);
        button.addEventListener("click", () =>
          attempt(async () => {
            await act(name, pid ? "kill" : "start");
            await showProcesses();
            announce(`${label} ${pid ? "stopped" : "started"}.`);
          }),
        );
        item.append(state, button);
        return item;
      }),
    );
    if (focused?.startsWith("break-")) find(focused)?.focus();
  }

  void attempt(showProcesses);
  // Processes are killed from terminals, too.
  setInterval(() => document.visibilityState === "visible" && void showProcesses().catch(() => {}), LOOK_MS);
}

export function showStudents({ user, students }) {
  const select = find("student");
  const chosen = select.value;
  select.replaceChildren(
    ...students.map(({ id, name }) => new Option(`${name} (student ${id})`, String(id))),
  );
  if (chosen) select.value = chosen;
  const hadFocus = find("sign-in").contains(document.activeElement);
  find("sign-in").hidden = user !== null;
  find("sign-out").hidden = user === null;
  if (user && hadFocus) find("sign-out").focus();
  find("who").textContent = user ? `Signed in as ${user.name}` : "Not signed in";
}
