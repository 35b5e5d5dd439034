// Hear how one's answers fare. A stream that broke is opened again until it is closed here.

const FIRST_RETRY_MS = 1_000;
const LONGEST_RETRY_MS = 10_000;

export function openFeed(url, { onResponse, onOpen, onBroken, onRefused }) {
  let source;
  let timer;
  let retry = FIRST_RETRY_MS;

  function open() {
    source = new EventSource(url);
    source.onopen = () => {
      retry = FIRST_RETRY_MS;
      onOpen();
    };
    source.addEventListener("response", (event) => onResponse(JSON.parse(event.data)));
    source.onerror = () => {
      onBroken();
      // The browser reconnects by itself after a cut, but gives up for good when it is told 503 once.
      if (source.readyState !== EventSource.CLOSED) return;
      onRefused(); // it does not say why
      timer = setTimeout(open, retry * (0.75 + Math.random() / 2));
      retry = Math.min(retry * 2, LONGEST_RETRY_MS);
    };
  }

  open();
  return () => {
    clearTimeout(timer);
    source.close();
  };
}
