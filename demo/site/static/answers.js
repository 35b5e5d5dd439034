// Show answers, each with its state and, once it has one, its score. Whatever students and models wrote is text,
// never markup.

import { formatNumber, formatTime } from "./text.js";

const PATIENCE_MS = 5_000;

const STATES = {
  waiting: "Waiting to be scored",
  scoring: "Being scored now",
  scored: "Scored",
  unpublished: "Stored",
  failed: "Could not be scored",
};

const EXPLANATIONS = {
  unpublished: "Your answer is safely stored. It can be scored as soon as its question is published; your teacher can see it.",
  failed: "Your answer is stored, but could not be scored. Your teacher can see it.",
};

const LONG_WAIT = "Your answer is safely stored. It will be scored as soon as possible; you can close this page.";

export const isUnderWay = (answer) => answer.state === "waiting" || answer.state === "scoring";

export const points = (score) => `${formatNumber(score.overall_score)} of ${formatNumber(score.scale_max)}`;

export function summarize(answer) {
  return answer.score ? `Scored: ${points(answer.score)}` : STATES[answer.state];
}

function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function dimension(given, score) {
  const row = make("div", "dimension");
  row.append(
    make("dt", "", given.name),
    make("dd", "number", `${formatNumber(given.score)} of ${formatNumber(score.scale_max)}`),
  );
  // The number beside it says the same.
  const bar = make("dd", "bar");
  bar.setAttribute("aria-hidden", "true");
  // As long as the number says; a scale that goes below nothing begins at its end.
  const from = Math.min(0, score.scale_min);
  const share = (given.score - from) / (score.scale_max - from);
  const filled = make("span");
  filled.style.setProperty("--share", `${Math.round(100 * Math.min(1, Math.max(0, share)))}%`);
  bar.append(filled);
  row.append(bar);
  if (given.note) row.append(make("dd", "note", given.note));
  return row;
}

function verdict(score) {
  const whole = make("div", "body-part fresh");
  const head = make("p", "verdict");
  const value = make("span", "points", formatNumber(score.overall_score));
  const scale = make("small", "", ` of ${formatNumber(score.scale_max)}`);
  value.append(scale);
  head.append(value);
  whole.append(head, make("p", "reasoning", score.reasoning ?? ""));
  if (score.dimensions?.length) {
    const list = make("dl", "dimensions");
    list.append(...score.dimensions.map((given) => dimension(given, score)));
    whole.append(list);
  }
  return whole;
}

// One answer's card. It stays the same element, so that whoever reads in it loses nothing when news come.
class Card {
  constructor(answer, justSubmitted) {
    this.element = make("li");
    this.details = make("details", "answer");
    this.title = make("h3");
    this.state = make("span", "state");
    this.body = make("div", "body");
    const summary = make("summary");
    summary.append(this.title, this.state);
    this.details.append(summary, this.body);
    this.element.append(this.details);
    this.patient = justSubmitted; // who has just submitted first waits a little
    this.show(answer);
    if (justSubmitted) this.timer = setTimeout(() => this.#lose(), PATIENCE_MS);
  }

  #lose() {
    this.patient = false;
    this.show(this.answer);
  }

  name(text) {
    this.title.textContent = text;
    const time = make("time", "", formatTime(this.answer.created_at));
    time.dateTime = this.answer.created_at;
    this.title.append(" ", time);
  }

  show(answer) {
    const fingerprint = JSON.stringify([answer.state, answer.score?.id, this.patient]);
    this.answer = answer;
    if (fingerprint === this.shown) return;
    this.shown = fingerprint;
    this.state.textContent = summarize(answer);
    this.state.dataset.state = answer.score ? "scored" : answer.state;
    const parts = [];
    if (answer.score) parts.push(verdict(answer.score));
    else if (EXPLANATIONS[answer.state]) parts.push(make("p", "", EXPLANATIONS[answer.state]));
    else if (!this.patient) parts.push(make("p", "long-wait", LONG_WAIT));
    const words = make("div", "words");
    words.append(make("h4", "", "What you wrote"), make("blockquote", "", answer.answer_text));
    parts.push(words);
    if (answer.score) parts.push(make("p", "by", `Scored by ${answer.score.model_id}, ${formatTime(answer.score.created_at)}`));
    this.body.replaceChildren(...parts);
  }
}

// The answers to one question, the newest first.
export class AnswerList {
  constructor(list) {
    this.list = list;
    this.cards = new Map();
  }

  clear() {
    for (const card of this.cards.values()) clearTimeout(card.timer);
    this.cards.clear();
    this.list.replaceChildren();
  }

  has(id) {
    return this.cards.has(id);
  }

  // Whether this answer's place is above the last one that is shown.
  isNewer(id) {
    return id > Math.min(...this.cards.keys());
  }

  get answers() {
    return [...this.cards.values()].map((card) => card.answer);
  }

  // Show an answer that may be here already. Returns what was known of it before.
  put(answer, { justSubmitted = false } = {}) {
    const card = this.cards.get(answer.id);
    if (card) {
      const before = card.answer;
      // Told late, by a reply that was overtaken.
      if ((answer.score?.id ?? 0) < (before.score?.id ?? 0)) return before;
      card.show({ ...before, ...answer });
      if (answer.score && !before.score) card.details.open = true;
      return before;
    }
    const added = new Card(answer, justSubmitted);
    this.cards.set(answer.id, added);
    this.#order();
    return null;
  }

  #order() {
    const ordered = [...this.cards.values()].sort((one, other) => other.answer.id - one.answer.id);
    ordered.forEach((card, index) => {
      if (this.list.children[index] !== card.element) this.list.insertBefore(card.element, this.list.children[index] ?? null);
      card.name(index === 0 ? "Latest answer" : "Earlier answer");
    });
    // The newest is open; others stay as the reader left them.
    if (ordered[0] && this.newest !== ordered[0]) {
      if (this.newest && this.cards.get(this.newest.answer.id) === this.newest) this.newest.details.open = false;
      ordered[0].details.open = true;
      this.newest = ordered[0];
    }
  }
}
