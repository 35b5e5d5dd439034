// What a student has written and not submitted. It is in three places: in the editor, on this device from the
// first letter on until the server has it, and on the server a second after the last letter.

import { Away, Refused, deleteDraft, draft as readDraft, saveDraft } from "./api.js";
import { forgetKept, kept, nameOf, keep } from "./kept.js";
import { countCharacters, newKey, wellFormed } from "./text.js";

const PAUSE_MS = 1_000; // after the last letter
const LONGEST_MS = 5_000; // for those who never pause
const RETRY_MS = [2_000, 4_000, 8_000, 15_000];
const CHANGES = 4; // another tab or device that saves at the same moment does so a few times at most

export class Draft {
  // `onStatus` hears "", "saving", "saved", "kept" (on this device only) or "refused", and why.
  // `onSpent` is called when it turns out that an answer was submitted under this key, from another tab perhaps.
  // A text of more than `maxChars` is not sent: the server would refuse it.
  constructor(question, mark, maxChars, onStatus, onSpent) {
    this.question = question;
    this.maxChars = maxChars;
    this.text = "";
    this.key = null; // made at the first letter, and kept until the answer has arrived
    this.name = nameOf(mark, question);
    this.onStatus = onStatus;
    this.onSpent = onSpent;
    this.saved = ""; // what the server has
    this.version = null; // and which one that is, so that a request which is late does no harm to a newer one
    this.failures = 0;
    this.changedSince = null;
    this.closed = false;
  }

  // Find what was written before, here or elsewhere. What this device kept is newer than what it had saved.
  // Two texts that were begun apart are both kept, one below the other.
  async restore(carried = null) {
    const here = kept(this.name) ?? carried;
    if (here) {
      this.text = here.text;
      this.key = here.key;
    }
    const { content: there, version } = await readDraft(this.question);
    if (this.closed) return;
    this.version = version;
    if (there && !this.text.trim()) {
      this.text = this.saved = there.answer_text;
      this.key = there.submission_key;
    } else if (there && there.submission_key === this.key) {
      this.saved = there.answer_text;
    } else if (there && !this.text.includes(there.answer_text)) {
      this.text = `${there.answer_text}\n\n${this.text}`;
      this.key = there.submission_key;
      this.saved = there.answer_text;
    }
    if (this.text !== this.saved) {
      this.#keep();
      this.#later(0);
    } else {
      this.#forget();
      if (this.text) this.onStatus("saved");
    }
  }

  write(text) {
    if (text === this.text) return;
    this.text = text;
    this.key ??= newKey();
    this.#keep();
    this.changedSince ??= performance.now();
    this.onStatus("saving");
    this.#later(Math.max(0, Math.min(PAUSE_MS, this.changedSince + LONGEST_MS - performance.now())));
  }

  // Another tab wrote; it saves.
  mirror(text, key) {
    this.text = text;
    this.key = key;
    this.saved = text;
  }

  #later(milliseconds) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.save(), milliseconds);
  }

  // Save now. One request at a time, so that an older text never arrives after a newer one.
  async save({ outlivesPage = false } = {}) {
    clearTimeout(this.timer);
    if (this.closed || this.text === this.saved) return true;
    if (this.saving && !outlivesPage) {
      await this.saving;
      return this.save();
    }
    // What is on its way may arrive or not: the last words of a page count either way.
    const version = this.saving ? null : this.version;
    this.abort?.abort();
    this.abort = new AbortController();
    this.saving = this.#send(this.text, this.key, version, { signal: this.abort.signal, outlivesPage });
    const mine = this.saving;
    const done = await mine;
    if (this.saving === mine) this.saving = null;
    return done;
  }

  async #send(text, key, version, options) {
    this.changedSince = null;
    if (countCharacters(text) > this.maxChars) {
      this.onStatus("refused");
      return false;
    }
    let isSpent;
    try {
      const stored = await this.#put(text, key, version, options);
      isSpent = !stored && this.key === key && (await this.#isSpent(key));
    } catch (error) {
      if (this.closed || options.signal.aborted) return false;
      if (error instanceof Away) {
        this.onStatus("kept");
        this.#later(RETRY_MS[Math.min(this.failures, RETRY_MS.length - 1)]);
        this.failures += 1;
      } else if (error instanceof Refused) {
        this.onStatus("refused", error);
      } else throw error;
      return false;
    }
    this.failures = 0;
    if (this.key !== key) return true; // submitted meanwhile
    if (isSpent) {
      if (!this.closed) this.onSpent();
      return false;
    }
    this.saved = text;
    if (this.closed) return true; // what this device keeps now may be newer, of whoever took over
    if (this.text === text) {
      this.#forget();
      this.onStatus(text.trim() ? "saved" : "");
    } else this.#later(PAUSE_MS);
    return true;
  }

  // Returns whether it is there now. Where another version is, of another tab or device, the last one to write wins, as
  // long as he is not late.
  async #put(text, key, version, options) {
    for (let tries = 1; ; tries += 1) {
      try {
        const done = text.trim()
          ? await saveDraft(this.question, wellFormed(text), key, version, options)
          : await deleteDraft(this.question, version, options);
        this.version = done.version;
        return !text.trim() || done.content !== null;
      } catch (error) {
        if (error.kind !== "draft-changed" || tries === CHANGES) throw error;
        ({ version } = await readDraft(this.question));
        if (this.closed || options.signal.aborted) throw error;
      }
    }
  }

  // Not stored: either an answer has this key, or a later text is there already. As long as that is not known, this
  // device keeps the text.
  async #isSpent(key) {
    return (await readDraft(this.question)).content?.submission_key !== key;
  }

  // The answer has arrived: the next letter begins another one. The server forgets a submitted draft by itself.
  submitted() {
    clearTimeout(this.timer);
    this.abort?.abort();
    this.text = this.saved = "";
    this.key = this.version = null;
    this.#forget();
    this.onStatus("");
  }

  // This key is used up, and the text is not what was stored under it: it becomes an answer of its own.
  beginAnew() {
    this.key = newKey();
    this.saved = "";
    this.#keep();
    this.#later(PAUSE_MS);
  }

  // Go on with what an earlier draft of this question has not saved, also where this device keeps nothing. That one tries
  // no more: it would replace what is written here.
  follow(earlier) {
    clearTimeout(earlier.timer);
    earlier.closed = true;
    if (earlier.text === earlier.saved) return;
    this.text = earlier.text;
    this.key = earlier.key;
  }

  // Nothing is sent any more; what this device keeps stays.
  close() {
    clearTimeout(this.timer);
    this.abort?.abort();
    this.closed = true;
  }

  #keep() {
    keep(this.name, { text: this.text, key: this.key });
  }

  #forget() {
    forgetKept(this.name);
  }
}
