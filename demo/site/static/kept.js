// What this device keeps of drafts that the server has not: for each person, by question.

const PREFIX = "draft:";
const prefixOf = (mark) => `${PREFIX}${mark}:`;

export const nameOf = (mark, question) => `${prefixOf(mark)}${question.module_slug}/${question.question_id}`;

// Where nothing may be kept, or nothing fits, the server has it a second later.
function onThisDevice(work) {
  try {
    return work(localStorage);
  } catch {
    return null;
  }
}

export function kept(name) {
  const found = onThisDevice((device) => JSON.parse(device.getItem(name)));
  return typeof found?.text === "string" && typeof found?.key === "string" ? found : null;
}

export const keep = (name, { text, key }) =>
  onThisDevice((device) => device.setItem(name, JSON.stringify({ text, key })));

export const forgetKept = (name) => onThisDevice((device) => device.removeItem(name));

const namesOf = (mark) =>
  onThisDevice((device) => Object.keys(device).filter((name) => name.startsWith(prefixOf(mark)))) ?? [];

export function forgetAllOf(mark) {
  namesOf(mark).forEach(forgetKept);
}

// A guest has signed in: what was kept for him is the user's, below what the user had.
export function handOver(mark, heir) {
  for (const name of namesOf(mark)) {
    const moved = kept(name);
    const place = prefixOf(heir) + name.slice(prefixOf(mark).length);
    const own = kept(place);
    if (moved?.text.trim() && !own?.text.trim()) keep(place, moved);
    else if (moved && own && !own.text.includes(moved.text)) keep(place, { text: `${own.text}\n\n${moved.text}`, key: own.key });
    forgetKept(name);
  }
}
