// Before somebody signs out: bring to the server what only this device has, and ask about what can't be brought.

import * as api from "./api.js";
import { Draft } from "./draft.js";
import { kept, nameOf } from "./kept.js";
import { readable } from "./menu.js";
import { countCharacters, formatNumber, wellFormed } from "./text.js";

const find = (id) => document.getElementById(id);

// Returns whether the server has it now.
async function bring(question, { mark, max_answer_chars }) {
  const draft = new Draft(question, mark, max_answer_chars, () => {}, () => {});
  try {
    await draft.restore();
    if (await draft.save()) return true;
    if (countCharacters(draft.text) > max_answer_chars) return false;
    // Its key is used up: it was submitted elsewhere, as it stands or in an earlier version.
    const { items } = await api.answers(question);
    if (items.some((answer) => answer.answer_text === wellFormed(draft.text))) return true;
    draft.beginAnew();
    return await draft.save();
  } catch {
    return false;
  } finally {
    draft.close();
  }
}

// Returns the questions whose drafts are on this device alone, and how long each is.
export async function bringAll(questions, open, who) {
  const opened = (await open?.save()) ?? true;
  const brought = questions.map(async (question) => {
    const isOpen = open?.question === question;
    const here = kept(nameOf(who.mark, question));
    const text = here?.text ?? (isOpen ? open.text : "");
    // What another tab writes stands here as well, and is kept here until that one has saved it.
    if (!text.trim() || (here ? await bring(question, who) : opened)) return null;
    return { question, length: countCharacters(text) };
  });
  return (await Promise.all(brought)).filter(Boolean);
}

// Returns whether to sign out all the same.
export function askToLose(unsaved, { max_answer_chars }) {
  find("unsaved").replaceChildren(
    ...unsaved.map(({ question, length }) => {
      const item = document.createElement("li");
      const over = length - max_answer_chars;
      const why = over > 0
        ? `${formatNumber(over)} ${over === 1 ? "character" : "characters"} too long to be saved`
        : "it can't be saved on the server now";
      item.textContent = `${readable(question.question_id)}: ${why}.`;
      return item;
    }),
  );
  const dialog = find("leaving");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "lose"), { once: true });
  });
}
