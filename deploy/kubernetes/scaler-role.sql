-- The scaler's login: it counts handoffs, reads no answer and writes nothing. (As any login it can take advisory locks;
-- workers look past a sweep's lock that is kept.) Run it once, after `scoring migrate`, with psql as the
-- owner of our tables who may create roles; then give it a password: \password scoring_scaler
--
-- `scoring grant` has no role that may so little: even its workers and operators read answers.
CREATE ROLE scoring_scaler LOGIN CONNECTION LIMIT 10;
GRANT SELECT (lane, state, question_digest, due_at, lease_token) ON scoring_handoffs TO scoring_scaler;
ALTER ROLE scoring_scaler SET default_transaction_read_only = on;
ALTER ROLE scoring_scaler SET statement_timeout = '5s';
-- KEDA's driver keeps the plan that was made when it first asked. Made while little waited, it would read the whole
-- backlog later; without these two ways it always reads the index in its order, and stops at the limit.
ALTER ROLE scoring_scaler SET enable_seqscan = off;
ALTER ROLE scoring_scaler SET enable_bitmapscan = off;
