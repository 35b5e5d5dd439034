// Talk to the server. Two things can go wrong: nobody answered (try again), or the server refused (say why).
// A third is no error of the call: somebody else has signed in at this browser, in another tab. Cookies are of the
// whole browser, so each call says for whom this page was loaded, and the server takes nothing for anybody else.

const PATIENCE_MS = 15_000;
// Browsers refuse a larger body in a request that outlives its page.
const KEEPALIVE_BYTES = 60_000;

export class Away extends Error {}

export class Refused extends Error {
  // A proxy's refusals look like anything.
  constructor(status, problem) {
    const words = [problem?.detail, problem?.title].find((text) => typeof text === "string");
    super(words ?? `The server refused this (${status}).`);
    this.status = status;
    this.kind = String(problem?.type ?? "").split(":").at(-1);
    this.errors = Array.isArray(problem?.errors) ? problem.errors : [];
  }
}

let person; // the mark of whom this page is for; undefined until it is known
let changing = false; // while this very tab signs somebody in or out
let giveWay = () => {};

export function actFor(mark) {
  person = mark;
  changing = false;
}

export const beginChange = () => void (changing = true);
export const onSomebodyElse = (listener) => void (giveWay = listener);

async function call(method, path, { body, headers = {}, signal, outlivesPage = false, mayBeEmpty = false, ofAnybody = false, changes = false, tagged = false } = {}) {
  const sender = ofAnybody ? undefined : person;
  const sent = body === undefined ? undefined : JSON.stringify(body);
  const signals = [AbortSignal.timeout(PATIENCE_MS), ...(signal ? [signal] : [])];
  let reply;
  try {
    reply = await fetch(path, {
      method,
      body: sent,
      headers: { Accept: "application/json", ...(sent && { "Content-Type": "application/json" }), ...(sender && { "Page-Of": sender }), ...headers },
      cache: "no-store",
      keepalive: outlivesPage && new Blob([sent ?? ""]).size < KEEPALIVE_BYTES,
      signal: AbortSignal.any(signals),
    });
    // Networks that ask for a password first answer everything, with nothing or with a page of theirs.
    if (reply.ok) {
      const content = reply.status === 204 && mayBeEmpty ? null : await reply.json();
      return tagged ? { content, version: reply.headers.get("ETag") } : content;
    }
  } catch (error) {
    throw new Away("The server can't be reached.", { cause: error });
  }
  if (reply.status >= 500 || reply.status === 408 || reply.status === 429) throw new Away("The server is away.");
  const refused = new Refused(reply.status, await reply.json().catch(() => null));
  if (sender && (reply.status === 412 || reply.status === 401) && refused.kind !== "draft-changed") {
    if (sender === person && (changes || !changing)) giveWay();
    return new Promise(() => {}); // whoever asked is not here any more
  }
  throw refused;
}

const draftPath = ({ module_slug, question_id }) =>
  `/assessment/drafts/${encodeURIComponent(module_slug)}/${encodeURIComponent(question_id)}`;

export const me = () => call("GET", "/api/me", { ofAnybody: true });
export const confirmPerson = () => call("GET", "/api/me");
export const streamAddress = () => `/assessment/events?${new URLSearchParams({ page_of: person })}`;
export const questions = () => call("GET", "/api/questions");
export const signIn = (userId) => call("POST", "/demo/sign-in", { body: { user_id: userId }, mayBeEmpty: true, changes: true });
export const signOut = () => call("POST", "/demo/sign-out", { mayBeEmpty: true, changes: true });
export const processes = () => call("GET", "/demo/processes");
export const act = (name, action) => call("POST", `/demo/processes/${encodeURIComponent(name)}/${action}`, { mayBeEmpty: true });

export const answer = (id) => call("GET", `/assessment/responses/${id}`);

export function answers(question, cursor) {
  const query = new URLSearchParams({ module_slug: question.module_slug, question_id: question.question_id, limit: 20 });
  if (cursor) query.set("cursor", cursor);
  return call("GET", `/assessment/responses?${query}`);
}

export const submit = (question, text, key) =>
  call("POST", "/assessment/responses", {
    body: { module_slug: question.module_slug, question_id: question.question_id, answer_text: text },
    headers: { "Idempotency-Key": key },
  });

// All three return what is there now, and its version; given a version, the other two do nothing to any other one.
export async function draft(question) {
  try {
    return await call("GET", draftPath(question), { mayBeEmpty: true, tagged: true });
  } catch (error) {
    if (error instanceof Refused && error.status === 404) return { content: null, version: null };
    throw error;
  }
}

const onlyIf = (version) => (version ? { "If-Match": version } : {});

export const saveDraft = (question, text, key, version, options) =>
  call("PUT", draftPath(question), {
    body: { answer_text: text, submission_key: key },
    headers: onlyIf(version),
    mayBeEmpty: true,
    tagged: true,
    ...options,
  });

export const deleteDraft = (question, version, options) =>
  call("DELETE", draftPath(question), { headers: onlyIf(version), mayBeEmpty: true, tagged: true, ...options });
