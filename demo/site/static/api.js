// Talk to the server. Two things can go wrong: nobody answered (try again), or the server refused (say why).

const PATIENCE_MS = 15_000;
// Browsers refuse a larger body in a request that outlives its page.
const KEEPALIVE_BYTES = 60_000;

export class Away extends Error {}

export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? problem.title ?? `The server refused this (${status}).`);
    this.status = status;
    this.kind = String(problem.type ?? "").split(":").at(-1);
    this.errors = problem.errors ?? [];
  }
}

async function call(method, path, { body, headers = {}, signal, outlivesPage = false } = {}) {
  const sent = body === undefined ? undefined : JSON.stringify(body);
  const signals = [AbortSignal.timeout(PATIENCE_MS), ...(signal ? [signal] : [])];
  let reply;
  try {
    reply = await fetch(path, {
      method,
      body: sent,
      headers: { Accept: "application/json", ...(sent && { "Content-Type": "application/json" }), ...headers },
      cache: "no-store",
      keepalive: outlivesPage && new Blob([sent ?? ""]).size < KEEPALIVE_BYTES,
      signal: AbortSignal.any(signals),
    });
    if (reply.ok) return reply.status === 204 ? null : await reply.json();
  } catch (error) {
    throw new Away("The server can't be reached.", { cause: error });
  }
  if (reply.status >= 500 || reply.status === 408 || reply.status === 429) throw new Away("The server is away.");
  throw new Refused(reply.status, await reply.json().catch(() => ({})));
}

const draftPath = ({ module_slug, question_id }) =>
  `/assessment/drafts/${encodeURIComponent(module_slug)}/${encodeURIComponent(question_id)}`;

export const me = () => call("GET", "/api/me");
export const questions = () => call("GET", "/api/questions");
export const signIn = (userId) => call("POST", "/demo/sign-in", { body: { user_id: userId } });
export const signOut = () => call("POST", "/demo/sign-out");
export const processes = () => call("GET", "/demo/processes");
export const act = (name, action) => call("POST", `/demo/processes/${encodeURIComponent(name)}/${action}`);

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

export async function draft(question) {
  try {
    return await call("GET", draftPath(question));
  } catch (error) {
    if (error instanceof Refused && error.status === 404) return null;
    throw error;
  }
}

export const saveDraft = (question, text, key, options) =>
  call("PUT", draftPath(question), { body: { answer_text: text, submission_key: key }, ...options });

export const deleteDraft = (question, options) => call("DELETE", draftPath(question), options);
