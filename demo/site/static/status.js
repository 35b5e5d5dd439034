// What stands below the editor: whether the draft is saved, and how much room is left.

import { announce } from "./notices.js";
import { countCharacters, formatNumber } from "./text.js";

const NEAR = 200; // characters left that are worth saying

const find = (id) => document.getElementById(id);
const editor = find("answer");

const DRAFT_WORDS = {
  "": "",
  saving: "Saving draft …",
  saved: "Draft saved",
  kept: "Not saved on the server yet. Your text is kept on this device, and saved when the connection is back.",
  refused: "This draft can't be saved on the server; it is kept on this device.",
};
let announced = "";

export function showDraftStatus(state) {
  const status = find("draft-status");
  status.textContent = DRAFT_WORDS[state];
  status.dataset.state = state;
  // Once is enough, until it changes: nobody wants to hear of every save while writing.
  if (state !== "saving" && state !== announced) {
    announced = state;
    if (state) announce(DRAFT_WORDS[state]);
  }
}

let spoken = "";

// Returns how many characters are left, less than nothing where there are too many.
export function showRemaining(max_answer_chars) {
  const left = max_answer_chars - countCharacters(editor.value);
  const state = left < 0 ? "over" : left <= NEAR ? "near" : "";
  const words = left < 0
    ? `${formatNumber(-left)} ${left === -1 ? "character" : "characters"} too long`
    : `${formatNumber(left)} ${left === 1 ? "character" : "characters"} left`;
  find("remaining").textContent = words;
  find("remaining").dataset.state = state;
  if (state === "over") editor.setAttribute("aria-invalid", "true");
  else editor.removeAttribute("aria-invalid");
  if (state !== spoken && state) announce(words);
  spoken = state;
  return left;
}
