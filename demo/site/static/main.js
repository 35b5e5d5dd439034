// The page: one question at a time, what is being written, and the answers to it.

import * as api from "./api.js";
import { AnswerList, isUnderWay, points } from "./answers.js";
import { showStudents, wireDemo } from "./demo.js";
import { Draft } from "./draft.js";
import { forgetAllOf, handOver, keep } from "./kept.js";
import { askToLose, bringAll } from "./leaving.js";
import { Listening } from "./listening.js";
import { Menu, addressOf, idOf, readable } from "./menu.js";
import { announce, notice, pause, untilReached } from "./notices.js";
import { showDraftStatus, showRemaining } from "./status.js";
import { wellFormed } from "./text.js";

const LOOK_MS = 10_000; // where a proxy holds the stream back, answers are looked at this often
const CLAIM_LOOK_MS = [300, 700, 1_500, 3_000, 5_000];

const find = (id) => document.getElementById(id);
const editor = find("answer");
const list = new AnswerList(find("answers"));
const menu = new Menu(find("menu"), find("modules"));
const tabs = new BroadcastChannel("answers");

let who;
let questions = [];
let question;
let draft;
const left = new Map(); // drafts of questions that were left, by name: they go on trying to be saved
let cursor; // where the earlier answers go on: undefined before the first page is here, null where there are no more
let page; // the newest answers to this question, on their way or here
let sending = null; // the answer that is on its way
let changing = false; // somebody signs in or out
let visit = 0; // counts questions shown: whatever was asked for an earlier one comes too late

// What is being written

function fill(text) {
  if (editor.value !== text) editor.value = text;
  showRemaining(who.max_answer_chars);
}

function newDraft(mark) {
  const made = new Draft(
    question,
    mark,
    who.max_answer_chars,
    (state) => made === draft && showDraftStatus(state),
    () => made === draft && void settleSpent(made),
  );
  return made;
}

async function restoreDraft(carried = null) {
  const mine = (draft = newDraft(who.mark));
  const earlier = left.get(mine.name);
  left.delete(mine.name);
  if (earlier) {
    mine.follow(earlier);
    fill(mine.text);
  }
  showDraftStatus("");
  const show = () => {
    // Who has begun to write meanwhile goes on.
    if (mine === draft && (mine.text || !editor.value)) fill(mine.text);
  };
  await untilReached(async () => {
    try {
      await earlier?.saving; // so that it is known what the server has
      await mine.restore(carried);
    } catch (error) {
      if (mine === draft && mine.text) showDraftStatus(error instanceof api.Away ? "kept" : "refused");
      if (!(error instanceof api.Refused)) throw error;
    } finally {
      show();
    }
  });
}

const tellTabs = () => tabs.postMessage({ kind: "written", name: draft.name, text: draft.text, key: draft.key });

editor.addEventListener("input", () => {
  showRemaining(who.max_answer_chars);
  find("problem").textContent = "";
  draft.write(editor.value);
  tellTabs();
});

// Leaving the page, or only looking away: what is written goes now.
const leave = () => void draft?.save({ outlivesPage: true });
window.addEventListener("pagehide", leave);
document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && leave());
window.addEventListener("online", () => void draft?.save());

// Two tabs on one question write one draft, so that they submit one answer.
tabs.addEventListener("message", ({ data }) => {
  if (data.kind === "someone-else" && who && data.now !== who.mark) giveWay(data.was === who.mark ? data.heir : null);
  if (data.name !== draft?.name || sending) return;
  if (data.kind === "written") {
    draft.mirror(data.text, data.key);
    fill(data.text);
  } else if (data.kind === "submitted" && data.key === draft.key) {
    void loadAnswers();
    settleSubmitted([data.text]);
  }
});

// An answer was submitted under the key of what stands here: as it stands, or an earlier version of it.
function settleSubmitted(texts) {
  if (texts.includes(wellFormed(draft.text))) {
    draft.submitted();
    fill("");
    announce("This answer was submitted in another tab.");
    return;
  }
  draft.beginAnew();
  tellTabs();
  announce("An earlier version of this answer was submitted in another tab. Your newer text is kept.");
}

// Submitting

function complain(text) {
  find("problem").textContent = text;
}

function holdEditor() {
  editor.readOnly = Boolean(sending) || changing;
}

function setSending(value) {
  holdEditor();
  const button = find("submit");
  button.textContent = value ? "Submitting …" : "Submit answer";
  if (value) button.setAttribute("aria-disabled", "true");
  else button.removeAttribute("aria-disabled");
}

function submit() {
  if (sending || changing || !draft) return;
  complain("");
  if (!editor.value.trim()) {
    complain("Write an answer first.");
    editor.focus();
    return;
  }
  if (showRemaining(who.max_answer_chars) < 0) {
    complain(`Your answer is ${find("remaining").textContent}.`);
    editor.focus();
    return;
  }
  draft.write(editor.value);
  sending = send(draft, wellFormed(draft.text), draft.key).finally(() => {
    sending = null;
    setSending(false);
  });
  setSending(true);
}

async function send(mine, text, key) {
  try {
    const stored = await api.submit(mine.question, text, key);
    arrived(mine, stored);
  } catch (error) {
    if (error instanceof api.Away) {
      complain("Not sent yet. Your text is kept; please try again.");
    } else if (error instanceof api.Refused && error.kind === "key-used") {
      // An earlier try had arrived after all, and the text was changed since.
      mine.beginAnew();
      complain("An earlier version of this answer had arrived already. Your newer text is kept here: submit it as another answer, if you like.");
      if (mine === draft) void loadAnswers();
    } else if (error instanceof api.Refused) {
      const rules = error.errors.map((each) => each?.rule).filter(Boolean).join("; ");
      complain(`Not accepted: ${(rules || error.message).replace(/\.$/, "")}. Your text is kept.`);
    } else throw error;
  }
}

function arrived(mine, stored) {
  const key = mine.key;
  mine.submitted();
  tabs.postMessage({ kind: "submitted", name: mine.name, key, text: stored.answer_text });
  announce("Your answer was submitted. It is waiting to be scored.");
  if (mine !== draft) return; // another question is open meanwhile
  fill("");
  show(stored, { justSubmitted: true });
}

// What stands in the editor was submitted elsewhere, as it stands or in an earlier version.
async function settleSpent(mine) {
  await loadAnswers();
  if (mine !== draft || sending) return;
  settleSubmitted(list.answers.map((answer) => answer.answer_text));
}

find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
editor.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
});

// The answers

const heard = new Map(); // by id: when the stream last told of it

function show(answer, options) {
  const before = list.put(answer, options);
  menu.mark(answer);
  find("none").hidden = true;
  if (before && !before.score && answer.score) announce(`Your answer was scored: ${points(answer.score)}.`);
  if (before && before.state !== "failed" && answer.state === "failed" && !answer.score) {
    announce("Your answer is stored, but could not be scored.");
  }
}

async function loadAnswers({ more = false } = {}) {
  const asked = performance.now();
  const shown = visit;
  let found;
  try {
    found = await untilReached(() => api.answers(question, more ? cursor : null));
  } catch (error) {
    if (error instanceof api.Refused && shown === visit) {
      notice("refused", `Your answers can't be shown: ${error.message} Load the page again.`);
    }
    return;
  }
  if (shown !== visit) return;
  for (const answer of found.items) {
    // What the stream said meanwhile is newer.
    if ((heard.get(answer.id) ?? 0) < asked || !list.has(answer.id)) show(answer);
  }
  if (more || cursor === undefined) cursor = found.next_cursor;
  find("more").hidden = !cursor;
  find("none").hidden = list.cards.size > 0;
}

find("more").addEventListener("click", async ({ currentTarget: button }) => {
  const shown = new Set(list.cards.values());
  await loadAnswers({ more: true });
  // The button is gone, and the focus with it: it goes on to what the button brought.
  if (button.hidden && [button, document.body].includes(document.activeElement)) {
    [...list.cards.values()].find((card) => !shown.has(card))?.element.querySelector("summary").focus();
  }
});

async function hear(answer) {
  heard.set(answer.id, performance.now());
  menu.mark(answer);
  if (!question || idOf(answer) !== idOf(question)) return;
  const shown = visit;
  await page; // what it brings need not be asked for
  if (shown !== visit) return;
  if (list.has(answer.id)) show(answer);
  else if (!cursor || list.isNewer(answer.id)) {
    const whole = await api.answer(answer.id).catch(() => null);
    if (whole && shown === visit) show(whole);
  } // else it stands on a page that was not asked for yet
}

// The list, unlike the stream, also says whose answers it wants.
const listening = new Listening(
  (answer) => void hear(answer),
  () => question && (page = loadAnswers()),
);

document.addEventListener("visibilitychange", () => {
  if (who) listening.begin();
});

setInterval(() => {
  if (document.visibilityState === "visible" && question && list.answers.some(isUnderWay)) {
    void api.answers(question).then(({ items }) => items.forEach((answer) => list.has(answer.id) && show(answer)), () => {});
  }
}, LOOK_MS);

// Which question, and for whom

async function open(next, { carried = null, focus = false } = {}) {
  visit += 1;
  if (draft) {
    left.set(draft.name, draft);
    void draft.save();
    draft = undefined;
  }
  question = next;
  cursor = undefined;
  list.clear();
  editor.value = "";
  complain("");
  find("moving").hidden = true;
  find("none").hidden = true;
  find("more").hidden = true;
  find("module").textContent = readable(next.module_slug);
  find("question-text").textContent = next.question_text.trim();
  find("outcome").textContent = next.learning_outcome_name ? `Learning goal: ${next.learning_outcome_name}` : "";
  document.title = `${readable(next.question_id)} – In your own words`;
  menu.choose(next);
  find("lesson").hidden = false;
  showRemaining(who.max_answer_chars);
  if (focus) find("question-text").focus();
  page = loadAnswers();
  await Promise.all([restoreDraft(carried), page]);
}

function chosen() {
  return questions.find((each) => addressOf(each) === location.hash);
}

window.addEventListener("hashchange", () => {
  const next = chosen();
  if (next && next !== question) void open(next, { focus: true });
});

// A guest's answers become the user's a moment after the sign-in: each question that the guest answered then has
// answers, the guest's or, where the user had answered it before, the user's own.
async function untilMoved(expected) {
  const shown = visit;
  const moving = find("moving");
  for (let looks = 0; shown === visit && list.cards.size === 0; looks += 1) {
    moving.textContent = "The answers you gave as a guest are being moved to your account. Nothing is lost.";
    moving.hidden = !expected;
    if (!expected) return;
    await pause(CLAIM_LOOK_MS[Math.min(looks, CLAIM_LOOK_MS.length - 1)]);
    await loadAnswers();
  }
  moving.hidden = true;
  if (expected && shown === visit) announce("The answers you gave as a guest are yours now.");
}

function closeDrafts() {
  for (const each of [draft, ...left.values()]) each?.close();
  left.clear();
}

// Another person is at this browser now, or the same one under another name. Nothing that is written here may be sent
// in that name; a guest who signed in takes along what he wrote.
function giveWay(heir = null) {
  closeDrafts();
  draft = undefined;
  listening.end();
  editor.value = "";
  find("lesson").hidden = true;
  if (heir) handOver(who.mark, heir);
  location.reload();
}
api.onSomebodyElse(giveWay);

// Shown again by "Back", as it was left: who is here now is asked anew.
window.addEventListener("pageshow", (event) => event.persisted && giveWay());

function setChanging(value) {
  changing = value;
  holdEditor();
}

wireDemo({
  announce,
  before: async (direction) => {
    if (!who) return false;
    setChanging(true);
    let goes = false;
    try {
      await sending; // it is an answer of whoever wrote it
      const unsaved = await bringAll(questions, draft, who);
      // Whoever sits here next must not find it; so it leaves this device when the server has it, or when told to.
      goes = direction === "in" || unsaved.length === 0 || (await askToLose(unsaved, who));
      if (goes) api.beginChange();
    } finally {
      if (!goes) setChanging(false);
    }
    return goes;
  },
  failed: async (direction) => {
    // Its reply may have been lost, and not the change.
    const now = await api.me().catch(() => who);
    if (now.mark === who.mark) {
      api.actFor(who.mark);
      setChanging(false);
      return;
    }
    if (direction === "out") forgetAllOf(who.mark);
    giveWay(direction === "in" ? now.mark : null);
  },
  after: async (direction) => {
    const { mark } = who;
    const carried = draft?.text.trim() ? { text: draft.text, key: draft.key } : null;
    const answered = list.cards.size > 0;
    closeDrafts();
    if (direction === "out") {
      forgetAllOf(mark);
      tabs.postMessage({ kind: "someone-else", was: mark });
      giveWay();
      return;
    }
    if (carried) keep(draft.name, carried);
    draft = undefined;
    who = await untilReached(api.me);
    api.actFor(who.mark);
    handOver(mark, who.mark);
    tabs.postMessage({ kind: "someone-else", was: mark, now: who.mark, heir: who.mark });
    showStudents(who);
    heard.clear();
    menu.forgetMarks();
    announce(`Signed in as ${who.user.name}.`);
    setChanging(false);
    listening.begin();
    await open(question, { carried });
    await untilMoved(answered);
    listening.begin(); // what has moved since is told from the beginning
  },
});

async function begin() {
  try {
    who = await untilReached(api.me);
    api.actFor(who.mark);
    showStudents(who);
    questions = await untilReached(api.questions);
  } catch (error) {
    if (!(error instanceof api.Refused)) throw error;
    notice("refused", `The page can't be shown: ${error.message}`);
    return;
  }
  menu.show(questions);
  listening.begin();
  if (questions.length) await open(chosen() ?? questions[0]);
  else notice("none", "No questions are published yet.");
}

void begin();
