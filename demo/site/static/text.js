// Text as the server counts and keeps it, and keys that no two answers share.

// Code points, as Python and PostgreSQL count; JavaScript's length counts an emoji as two.
export function countCharacters(text) {
  let count = 0;
  for (const _ of text) count += 1;
  return count;
}

// Half an emoji, left by a careless paste, can't be stored.
export const wellFormed = (text) => text.toWellFormed?.() ?? text;

// randomUUID exists in secure contexts only: https, and localhost.
export function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
export const formatNumber = (value) => number.format(value);

const moment = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
export const formatTime = (iso) => moment.format(new Date(iso));
