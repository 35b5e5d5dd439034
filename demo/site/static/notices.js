// What the page says of itself: to those who listen, and of what is wrong with it.

import { Away } from "./api.js";

const RETRY_MS = [1_000, 2_000, 4_000, 8_000];

const find = (id) => document.getElementById(id);

export function announce(text) {
  const announcer = find("announcer");
  // The same words twice are news as well.
  announcer.textContent = announcer.textContent === text ? `${text}\u00a0` : text;
}

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export async function untilReached(work) {
  for (let tries = 0; ; tries += 1) {
    try {
      const result = await work();
      if (tries) settle("away");
      return result;
    } catch (error) {
      if (!(error instanceof Away)) throw error;
      notice("away", "The server can't be reached now. Trying again …");
      await pause(RETRY_MS[Math.min(tries, RETRY_MS.length - 1)]);
    }
  }
}

// There is one place for what is wrong with the page, and each trouble takes back only what it said itself.
let trouble;

export function notice(kind, text) {
  trouble = kind;
  find("notice").textContent = text;
  find("notice").hidden = false;
}

export function settle(kind) {
  if (trouble === kind) find("notice").hidden = true;
}
