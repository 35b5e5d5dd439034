// The stream of one's own answers, while somebody looks.

import { confirmPerson, streamAddress } from "./api.js";
import { openFeed } from "./feed.js";
import { notice, settle } from "./notices.js";

const QUIET_MS = 3_000; // a stream that is back this soon is not worth a word

// Browsers open six connections to a host, and a stream keeps one: so a tab listens only while it is looked at.
export class Listening {
  #onResponse;
  #onMissed;
  #close = () => {};
  #quiet;
  #missed = false; // whether something may have come to pass while nobody listened

  // onResponse hears of each answer; onMissed is told when the stream is back.
  constructor(onResponse, onMissed) {
    this.#onResponse = onResponse;
    this.#onMissed = onMissed;
  }

  begin() {
    this.end();
    if (document.visibilityState === "hidden") {
      this.#missed = true;
      return;
    }
    this.#close = openFeed(streamAddress(), {
      onResponse: this.#onResponse,
      onOpen: () => {
        clearTimeout(this.#quiet);
        this.#quiet = undefined;
        settle("quiet");
        if (this.#missed) this.#onMissed();
        this.#missed = false;
      },
      onRefused: () => void confirmPerson().catch(() => {}),
      onBroken: () => {
        this.#missed = true;
        this.#quiet ??= setTimeout(
          () => notice("quiet", "The connection is interrupted. What you write is kept, and scores appear when it is back."),
          QUIET_MS,
        );
      },
    });
  }

  end() {
    this.#close();
    this.#close = () => {};
    clearTimeout(this.#quiet);
    this.#quiet = undefined;
  }
}
