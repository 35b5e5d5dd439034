// Which questions there are, and how far the student has come with each.

import { summarize } from "./answers.js";

const WIDE = matchMedia("(min-width: 60rem)");

export const addressOf = (question) =>
  `#/${encodeURIComponent(question.module_slug)}/${encodeURIComponent(question.question_id)}`;

export const idOf = ({ module_slug, question_id }) => JSON.stringify([module_slug, question_id]);

export const readable = (slug) => {
  const words = slug.replaceAll("-", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
};

export class Menu {
  constructor(details, modules) {
    this.details = details;
    this.modules = modules;
    this.links = new Map();
    this.latest = new Map();
    const unfold = () => (details.open = WIDE.matches);
    WIDE.addEventListener("change", unfold);
    unfold();
  }

  show(questions) {
    const lists = new Map();
    this.links.clear();
    for (const question of questions) {
      if (!lists.has(question.module_slug)) {
        const heading = document.createElement("h2");
        heading.textContent = readable(question.module_slug);
        const list = document.createElement("ul");
        this.modules.append(heading, list);
        lists.set(question.module_slug, list);
      }
      const link = document.createElement("a");
      link.href = addressOf(question);
      link.textContent = readable(question.question_id);
      link.addEventListener("click", () => (this.details.open = WIDE.matches));
      const item = document.createElement("li");
      item.append(link);
      lists.get(question.module_slug).append(item);
      this.links.set(idOf(question), link);
    }
  }

  choose(question) {
    for (const [id, link] of this.links) {
      if (id === idOf(question)) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  // Mark a question with the state of the newest answer to it.
  mark(answer) {
    const id = idOf(answer);
    const link = this.links.get(id);
    if (!link || (this.latest.get(id) ?? 0) > answer.id) return;
    this.latest.set(id, answer.id);
    link.querySelector(".mark")?.remove();
    const mark = document.createElement("span");
    mark.className = "mark";
    mark.textContent = summarize(answer);
    link.append(mark);
  }

  forgetMarks() {
    this.latest.clear();
    for (const link of this.links.values()) link.querySelector(".mark")?.remove();
  }
}
