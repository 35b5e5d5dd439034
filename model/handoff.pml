/*
 * The protocol of the scoring handoff, small enough to be searched exhaustively. docs/model.md says which step
 * is which SQL statement; model/check runs it.
 *
 * One atomic step is one committed statement. Where READ COMMITTED matters, a statement is two steps: its
 * snapshot, and its commit, which sees the newest version of the rows that it locks.
 *
 *   -DSCORING   submits, publications, two workers, a bell that loses and doubles, sweep, crashes, rescoring
 *   -DCLAIMS    submits under two tokens, claims of two users, two workers that apply them, a message that comes late
 *   -DLIVENESS  for the properties about what happens in the end
 *   -DM_...     one guard broken; the search must find an error then
 */

#ifdef LIVENESS
/* Something always happens somewhere else: a fair run in which nothing more happens here is a run, too. */
bit elsewhere_now;
active proctype elsewhere() {
end:
    do
    :: elsewhere_now = 1 - elsewhere_now
    od
}
#endif

#ifdef SCORING

#ifndef CRASHES
#define CRASHES 1      /* of workers, together */
#endif
#ifndef POSTPONEMENTS
#define POSTPONEMENTS 1 /* together: a provider that fails for ever is no bounded trouble */
#endif
#ifndef LOST_DRAINS
#define LOST_DRAINS 1  /* rings of the sweep that Redis forgets; messages of producers may all be lost */
#endif
#ifndef RESCORES
#define RESCORES 1
#endif
#ifndef RETRIES
#define RETRIES 1
#endif
#ifndef EDITIONS
#define EDITIONS 2     /* how often the question is published */
#endif

#ifndef R
#define R 2            /* responses, one of each producer; where it is 1, both submit it, under the same key */
#endif
#define IDS 4          /* handoffs that a response may have, one after the other, and one to spare */
#define MAX_ATTEMPTS 2
#define SUSPECT_AFTER 1
#define BURY_AFTER 2

#define NOBODY 255
#define NONE 0         /* no handoff */
#define OPEN 1
#define DEAD 2
#define DISMISSED 3
#define LIVE 0
#define BULK 1

bool exists[R];        /* assessment_responses */
byte state[R];         /* scoring_handoffs, by response ... */
byte identity[R];      /* handoff_id */
byte digest[R];        /* 0: null */
bool due[R];           /* due_at is not in the future; false for infinity too */
byte holder[R] = NOBODY; /* lease_token */
byte losses[R];
byte attempts[R];
bit lane[R];
byte scores[R];        /* assessment_scores: how many ... */
bool settled[R * IDS]; /* ... and for which handoffs */

byte current;          /* the content that is published; 0: none */
byte bell[R];          /* messages that name a response */
bool drain[2], drain_suspect;

byte crashes = CRASHES, postponements = POSTPONEMENTS, lost_drains = LOST_DRAINS;
byte rescores = RESCORES, retries = RETRIES;
#define IS_DUE(r)      (state[r] == OPEN && digest[r] != 0 && due[r])
#define LOSSES(r)      (losses[r] + (holder[r] != NOBODY))
#define ORDINARY(r)    (LOSSES(r) < SUSPECT_AFTER)
#define SUSPECT(r)     (IS_DUE(r) && LOSSES(r) >= SUSPECT_AFTER && LOSSES(r) < BURY_AFTER)
#define LOST(r)        (IS_DUE(r) && LOSSES(r) >= BURY_AFTER)
#define HELD(r, w)     (holder[r] == w && identity[r] == my_identity && state[r] == OPEN)

#if R == 1
#define ANY(a)         (a(0))
#else
#define ANY(a)         (a(0) || a(1))
#endif
#define IN_LIVE(r)     (IS_DUE(r) && ORDINARY(r) && lane[r] == LIVE)
#define IN_BULK(r)     (IS_DUE(r) && ORDINARY(r) && lane[r] == BULK)
#define RINGS          (ANY(IN_LIVE) && !drain[LIVE]) || (ANY(IN_BULK) && !drain[BULK]) || \
                       (ANY(SUSPECT) && !drain_suspect)
#define IS_DEAD(r)     (state[r] == DEAD)
#if R == 1
#define FIRST_DEAD     r = 0
#else
#define FIRST_DEAD     r = (state[0] == DEAD -> 0 : 1)
#endif
#define MISSED(r)      (state[r] == OPEN && digest[r] == 0 && current != 0)

/* What must hold after every step. */
inline holds(r) {
    assert(!exists[r] || state[r] != NONE || scores[r] > 0);      /* nothing is lost */
    assert(state[r] == NONE || !settled[r * IDS + identity[r]]);  /* what is settled does not live on */
    assert(holder[r] == NOBODY || (state[r] == OPEN && digest[r] != 0));
    assert(!due[r] || (state[r] == OPEN && digest[r] != 0))
}

inline forget(r) {
    due[r] = false; holder[r] = NOBODY; losses[r] = 0; attempts[r] = 0
}

/* storage.submissions._SUBMIT. The bell loses the message, or brings it once or twice, now or any time later. */
proctype producer(byte r) {
    byte seen = current;                /* its snapshot */
    atomic {
        if
        :: exists[r]                    /* ON CONFLICT (submission_key) DO NOTHING */
        :: else ->
            exists[r] = true;
#ifdef M_SUBMIT_WITHOUT_HANDOFF
            if
            :: seen == 0
            :: else ->
                state[r] = OPEN; digest[r] = seen; due[r] = true; lane[r] = LIVE
            fi;
#else
            state[r] = OPEN; digest[r] = seen; due[r] = (seen != 0); lane[r] = LIVE;
#endif
            if
            :: bell[r] = 0
            :: bell[r] = 1
            :: bell[r] = 2
            fi
        fi;
        holds(r);
        seen = 0
    }
}

/* storage.questions._PUBLISH and _REVIVE: each sees what is committed, but no submit that is on its way. */
proctype publisher() {
    byte edition = 1, r;
    do
    :: edition <= EDITIONS ->
        d_step {
            current = edition;
            r = 0;
            do
            :: r < R ->
                if
                :: exists[r] && state[r] == OPEN && digest[r] == 0 -> digest[r] = current; due[r] = true
                :: else
                fi;
                holds(r);
                r++
            :: else -> break
            od;
            edition++;
            r = 0
        }
    :: else -> break
    od
}

/* The end of every statement that leases. */
inline take(which) {
    r = which;
    assert(due[r]);                     /* nobody's lease is taken before it ran out */
    losses[r] = LOSSES(r); holder[r] = me; due[r] = false;
    my_identity = identity[r]; my_digest = digest[r];
    busy = true;
    holds(r)
}

/* storage.leases._LEASE_BY_IDS, by a message that names one response. */
inline take_named(which) {
    bell[which]--;
    if
#ifdef M_LEASE_WITHOUT_DUE
    :: state[which] == OPEN && digest[which] != 0 && LOSSES(which) < BURY_AFTER -> take(which)
#else
    :: IS_DUE(which) && ORDINARY(which) -> take(which)
#endif
    :: else
    fi
}

inline settle() {
    assert(!settled[r * IDS + my_identity]);   /* no handoff is settled twice */
    assert(identity[r] != my_identity || digest[r] == my_digest); /* scored for what is written down */
    settled[r * IDS + my_identity] = true;
    scores[r] = 1;
#ifndef M_SETTLE_KEEPS_HANDOFF
    state[r] = NONE; digest[r] = 0; forget(r)
#endif
}

inline ends() {
    holds(r);
    busy = false; renewed = false; r = 0; my_identity = 0; my_digest = 0
}

#ifdef M_SETTLE_UNGUARDED
#define MAY_SETTLE     true
#else
#define MAY_SETTLE     (state[r] != NONE && identity[r] == my_identity && digest[r] != 0)
#endif
#ifdef M_RELEASE_UNGUARDED
#define MAY_RELEASE    (state[r] == OPEN && digest[r] != 0)
#else
#define MAY_RELEASE    HELD(r, me)
#endif
#ifdef M_RENEW_UNGUARDED
#define MAY_RENEW      (state[r] == OPEN && digest[r] != 0)
#else
#define MAY_RENEW      HELD(r, me)
#endif

/* A worker with one slot. */
proctype worker(byte me) {
    byte r, my_identity, my_digest;
    bool busy, renewed;

end:
    do
    :: d_step { !busy && bell[0] > 0 -> take_named(0) }
#if R == 2
    :: d_step { !busy && bell[1] > 0 -> take_named(1) }
#endif
    /* storage.leases._PULL: a drain makes it pull; the sweep rings again while anything is overdue. */
    :: atomic { !busy && drain[LIVE] ->
        drain[LIVE] = false;
        if
        :: IN_LIVE(0) -> take(0)
#if R == 2
        :: IN_LIVE(1) -> take(1)
#endif
        :: else
        fi }
    :: atomic { !busy && drain[BULK] ->
        drain[BULK] = false;
        if
        :: IN_BULK(0) -> take(0)
#if R == 2
        :: IN_BULK(1) -> take(1)
#endif
        :: else
        fi }
    /* storage.leases._PULL_SUSPECTS: a worker of the model has one slot, so its groups are of one. */
    :: atomic { !busy && drain_suspect ->
        drain_suspect = false;
        if
        :: SUSPECT(0) -> take(0)
#if R == 2
        :: SUSPECT(1) -> take(1)
#endif
        :: else
        fi }

    /* storage.settlements._SETTLE: guarded by the handoff's existence alone. */
    :: d_step { busy ->
        if
        :: MAY_SETTLE -> settle()
        :: else                         /* too late: the score is dropped */
        fi;
        ends() }
    /* The same, but its acknowledgement is lost: it will be repeated. */
    :: d_step { busy && MAY_SETTLE && !renewed -> settle(); renewed = true; holds(r) }
    /* storage.leases._RENEW, once: nobody renews for ever. */
    :: d_step { busy && !renewed ->
        if
        :: MAY_RENEW ->
            assert(holder[r] == me);    /* who lost the lease has no say */
            due[r] = false
        :: else
        fi;
        renewed = true;
        holds(r) }
    /* storage.settlements._POSTPONE; the pause ends when the clock says so. */
    :: d_step { busy && postponements > 0 ->
        postponements--;
        if
        :: MAY_RELEASE -> assert(holder[r] == me); holder[r] = NOBODY; due[r] = false
        :: else
        fi;
        ends() }
    /* storage.settlements._FAIL, or _BURY where no attempt is left. */
    :: d_step { busy ->
        if
        :: MAY_RELEASE ->
            assert(holder[r] == me);
            attempts[r]++;
            holder[r] = NOBODY; due[r] = false;
            if
            :: attempts[r] >= MAX_ATTEMPTS -> state[r] = DEAD
            :: else
            fi
        :: else
        fi;
        ends() }
    /* storage.settlements._HAND_BACK, and the process ends. */
    :: d_step { busy && crashes > 0 ->
        crashes--;
        if
        :: MAY_RELEASE -> assert(holder[r] == me); holder[r] = NOBODY; due[r] = true
        :: else
        fi;
        ends() }
    /* It is killed: nobody hands anything back. */
    :: d_step { busy && crashes > 0 -> crashes--; ends() }
    od
}

#ifdef M_LEASES_NEVER_END
#define ENDS(r)        (state[r] == OPEN && digest[r] != 0 && !due[r] && holder[r] == NOBODY)
#else
#define ENDS(r)        (state[r] == OPEN && digest[r] != 0 && !due[r])
#endif

/* PostgreSQL's clock: a lease runs out, whether or not its holder lives; a pause ends. */
proctype clock() {
end:
    do
    :: d_step { ENDS(0) -> due[0] = true }
#if R == 2
    :: d_step { ENDS(1) -> due[1] = true }
#endif
    od
}

/* storage.sweeps._OVERDUE and the bells it rings, storage.leases._BURY_LOST, storage.sweeps._REVIVE_MISSED. */
proctype sweep() {
    byte r;
end:
    do
#ifndef M_NO_SWEEP
    :: d_step { RINGS ->
        drain[LIVE] = drain[LIVE] || ANY(IN_LIVE);
        drain[BULK] = drain[BULK] || ANY(IN_BULK);
        drain_suspect = drain_suspect || ANY(SUSPECT)
       }
#endif
    /* Redis forgets what was rung. */
    :: d_step { lost_drains > 0 && (drain[LIVE] || drain[BULK] || drain_suspect) ->
        lost_drains--; drain[LIVE] = false; drain[BULK] = false; drain_suspect = false }
#ifndef M_LOST_NOT_BURIED
    :: d_step { ANY(LOST) ->
        r = 0;
        do
        :: r < R ->
            if
            :: LOST(r) -> losses[r] = LOSSES(r); holder[r] = NOBODY; due[r] = false; state[r] = DEAD
            :: else
            fi;
            holds(r);
            r++
        :: else -> break
        od;
        r = 0
       }
#endif
#ifndef M_NO_REVIVE_MISSED
    :: d_step { ANY(MISSED) ->
        r = 0;
        do
        :: r < R ->
            if
            :: MISSED(r) ->
#ifndef M_REVIVE_WITHOUT_DIGEST
                digest[r] = current;
#endif
                due[r] = true
            :: else
            fi;
            holds(r);
            r++
        :: else -> break
        od;
        r = 0
       }
#endif
    od
}

inline rescore_now(r) {                 /* storage.dead._RESCORE */
    if
    :: seen == 0                        /* never published: left alone */
    :: seen != 0 && state[r] == OPEN && digest[r] == seen
    :: else ->
        if
        :: state[r] == OPEN && lane[r] == LIVE  /* never demoted */
        :: else -> lane[r] = BULK
        fi;
#ifndef M_RESCORE_KEEPS_IDENTITY
        identity[r]++;
#endif
        assert(identity[r] < IDS);
        state[r] = OPEN; digest[r] = seen; forget(r); due[r] = true
    fi
}

/* People: rescoring, storage.dead._RETRY, storage.dead._DISMISS. */
proctype operator() {
    byte seen, r;
end:
    do
    :: rescores > 0 ->
        if
        :: r = 0
#if R == 2
        :: r = 1
#endif
        fi;
        seen = current;                 /* its snapshot */
        d_step {
            rescores--;
            if
            :: exists[r] -> rescore_now(r)
            :: else
            fi;
            holds(r);
            seen = 0; r = 0
        }
    :: d_step { retries > 0 && ANY(IS_DEAD) ->
        retries--;
        FIRST_DEAD;
        forget(r); state[r] = OPEN; due[r] = (digest[r] != 0);
        holds(r);
        r = 0 }
    :: d_step { retries > 0 && ANY(IS_DEAD) ->
        retries--;
        FIRST_DEAD;
        state[r] = DISMISSED;
        holds(r);
        r = 0 }
    :: rescores == 0 && retries == 0 -> break
    od
}

init {
    atomic {
        run producer(0); run producer(R - 1);
        run publisher();
        run worker(0); run worker(1);
        run clock();
        run sweep();
        run operator()
    }
}

#define AT_REST(r) (exists[r] && state[r] != OPEN)
/* Every response is settled or dead in the end, and stays so. */
#define AWAKE(r)   (!AT_REST(r))
ltl settled_or_dead { <> [] !ANY(AWAKE) }

#endif

#ifdef CLAIMS

/* Three answers: 0 under token 1 and 1 under token 2, to the same question; 2 under token 1, to another one. */
#define ANSWERS 3
#define CLAIM_COUNT 3
#define TOKEN_OF(r)    (r == 1 -> 2 : 1)
#define QUESTION_OF(r) (r == 2 -> 1 : 0)
/* Three claims: 0 of user 1 for token 1, 1 of user 1 for token 2, 2 of user 2 for token 1. */
#define USER_BY(c)     (c == 2 -> 2 : 1)
#define TOKEN_BY(c)    (c == 1 -> 2 : 1)

bool stored[ANSWERS];
byte owner_user[ANSWERS];  /* assessment_responses.user_id; 0: null */
byte owner_token[ANSWERS]; /* assessment_responses.anonymous_token; 0: null */
bool applied[CLAIM_COUNT];
bool rung = true;          /* a message that names claim 0, and comes at any time: early, doubled or late */
byte turn[3];              /* the advisory lock of each user: who has it; 0: nobody */
byte brought[4];           /* by user and question: the token from which claims brought a first answer */

#define FIRST(u, q) brought[(u - 1) * 2 + q]

/* storage.submissions._SUBMIT: at any time, also while its token is being claimed. */
proctype student(byte r) {
    d_step { stored[r] = true; owner_token[r] = TOKEN_OF(r) }
}

/* One answer, as the commit of _APPLY finds it: it was locked, so its newest version counts, but whether the
   user has answered its question comes from the snapshot. */
inline move(n) {
    if
#ifdef M_CLAIM_WITHOUT_LOCK
    :: (lying & (1 << n)) != 0 && (answered & (1 << n)) == 0 ->
#else
    :: (lying & (1 << n)) != 0 && (answered & (1 << n)) == 0 && owner_token[n] == TOKEN_BY(c) ->
#endif
        assert(owner_user[n] == 0);     /* an answer never goes from one user to another */
        assert(FIRST(USER_BY(c), QUESTION_OF(n)) == 0 || FIRST(USER_BY(c), QUESTION_OF(n)) == TOKEN_BY(c));
        FIRST(USER_BY(c), QUESTION_OF(n)) = TOKEN_BY(c);
        owner_user[n] = USER_BY(c);
#ifndef M_CLAIM_KEEPS_TOKEN
        owner_token[n] = 0
#endif
    :: else
    fi;
    assert(!stored[n] || (owner_user[n] == 0) != (owner_token[n] == 0)) /* exactly one owner */
}

/* What _APPLY sees of one answer. */
inline see(n) {
    if
    :: stored[n] && owner_token[n] == TOKEN_BY(c) ->
        lying = lying | (1 << n);
        if
#ifdef M_CLAIM_MOVES_ANSWERED
        :: false
#else
        :: (owner_user[0] == USER_BY(c) && QUESTION_OF(0) == QUESTION_OF(n)) -> answered = answered | (1 << n)
        :: (owner_user[1] == USER_BY(c) && QUESTION_OF(1) == QUESTION_OF(n)) -> answered = answered | (1 << n)
        :: (owner_user[2] == USER_BY(c) && QUESTION_OF(2) == QUESTION_OF(n)) -> answered = answered | (1 << n)
#endif
        :: else
        fi
    :: else
    fi
}

/* A worker that applies claims, and its sweep, which finds those that nobody applied. */
proctype claimer(byte me) {
    byte c, lying, answered;
    bool has_turn, sees;

end:
    do
    :: d_step { rung -> rung = false; c = 0 } goto take_turn
#ifndef M_NO_SWEEP_OF_CLAIMS
    :: d_step { !applied[0] -> c = 0 } goto take_turn
    :: d_step { !applied[1] -> c = 1 } goto take_turn
    :: d_step { !applied[2] -> c = 2 } goto take_turn
#endif
    od;

take_turn:                              /* storage.claims._TAKE_TURN: sees the claim, then waits */
    if
    :: applied[c]
#ifndef M_CLAIM_WITHOUT_TURN
    :: !applied[c] ->
        atomic { turn[USER_BY(c)] == 0 -> turn[USER_BY(c)] = me; has_turn = true }
#else
    :: !applied[c]
#endif
    fi;

    /* storage.claims._APPLY: its snapshot ... */
    d_step {
#ifdef M_CLAIM_APPLIED_TWICE
        sees = true;
#else
        sees = !applied[c];
#endif
        if
        :: sees -> see(0); see(1); see(2)
        :: else
        fi
    }
    /* ... and its commit. FOR UPDATE of the claim: whoever waited for another one sees that it is applied. */
    d_step {
        if
#ifdef M_CLAIM_APPLIED_TWICE
        :: sees ->
#else
        :: sees && !applied[c] ->
#endif
            assert(!applied[c]);
            move(0); move(1); move(2);
            applied[c] = true
        :: else
        fi;
        if
        :: has_turn -> turn[USER_BY(c)] = 0
        :: else
        fi;
        has_turn = false; sees = false; lying = 0; answered = 0; c = 0
    }
    goto end
}

init {
    atomic {
        run student(0); run student(1); run student(2);
        run claimer(1); run claimer(2)
    }
}

/* Every claim is applied in the end. */
ltl applied_in_the_end { <> [] (applied[0] && applied[1] && applied[2]) }

#endif
