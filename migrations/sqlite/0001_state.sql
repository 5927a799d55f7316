-- The state of one daemon: what Vercel acknowledged, what is to be sent, and where reading stands.
--
-- Reason: a change found in the source must survive any crash between its discovery and Vercel's acknowledgement, so the
-- outbox, the cursor and the acknowledged side live in one database and change in one transaction. What a row can never be is
-- said here as a constraint, so that no version of the code can write it.
--
-- A column that is written for each delivery is compared with each name by itself: for a list of more than two SQLite fills a table
-- at every write.
--
-- Times are milliseconds since the Unix epoch. No column holds a secret's value: secrets appear as name and keyed fingerprint.

-- Marks the file as this program's: another program's database is refused instead of migrated.
PRAGMA application_id = 1919118948;

-- Single values: the fingerprint key.
CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Where polls and sweeps stand; written in the transaction that commits what they found.
CREATE TABLE progress (
    name  TEXT NOT NULL PRIMARY KEY CHECK (name IN ('poll', 'sweep')),
    value TEXT NOT NULL CHECK (json_valid(value))
) STRICT, WITHOUT ROWID;

-- One resource: Vercel's side of it and the row that was last decided on.
CREATE TABLE resource (
    installation_id TEXT    NOT NULL CHECK (installation_id <> ''),
    resource_id     TEXT    NOT NULL CHECK (resource_id <> ''),
    acknowledged    TEXT    NOT NULL CHECK (json_valid(acknowledged)),
    doubt           TEXT    NOT NULL CHECK (json_valid(doubt)),
    dismissed       TEXT    NOT NULL CHECK (json_valid(dismissed)),
    row_hash        BLOB    CHECK (length(row_hash) = 16),
    missing_since   INTEGER,
    missing_sweeps  INTEGER CHECK (missing_sweeps >= 0),
    acknowledged_at INTEGER,
    PRIMARY KEY (installation_id, resource_id),
    CHECK ((missing_since IS NULL) = (missing_sweeps IS NULL))
) STRICT;

CREATE INDEX resource_acknowledged ON resource (acknowledged_at) WHERE acknowledged_at IS NOT NULL;
CREATE INDEX resource_missing ON resource (missing_since) WHERE missing_since IS NOT NULL;
CREATE INDEX resource_dismissed ON resource (installation_id) WHERE dismissed <> '{}';

-- The guard's holds: passes that were beyond the blast radius and wait for a person. A provisional one keeps back what a pass has
-- counted until the pass ends; within the limits it is deleted then.
CREATE TABLE hold (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    state       TEXT    NOT NULL CHECK (state IN ('provisional', 'open', 'released', 'discarded', 'dissolved')),
    origin      TEXT    NOT NULL,
    opened_at   INTEGER NOT NULL,
    closed_at   INTEGER,
    destructive INTEGER NOT NULL DEFAULT 0 CHECK (destructive >= 0),
    changes     INTEGER NOT NULL DEFAULT 0 CHECK (changes >= 0),
    CHECK ((closed_at IS NULL) = (state IN ('provisional', 'open')))
) STRICT;

-- At most one waits for a person, and one for the end of each kind of pass.
CREATE UNIQUE INDEX hold_open ON hold (state) WHERE state = 'open';
CREATE UNIQUE INDEX hold_provisional ON hold (origin) WHERE state = 'provisional';

-- What the guard has counted: the changes of the window that it looks at.
CREATE TABLE guarded (
    installation_id TEXT    NOT NULL,
    resource_id     TEXT    NOT NULL,
    at              INTEGER NOT NULL,
    kind            TEXT    NOT NULL CHECK (kind IN ('destructive', 'change')),
    PRIMARY KEY (installation_id, resource_id, kind)
) STRICT, WITHOUT ROWID;

CREATE INDEX guarded_at ON guarded (kind, at);

-- The outbox. AUTOINCREMENT: a number is never used twice, also after its entry was pruned.
CREATE TABLE entry (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    installation_id  TEXT    NOT NULL,
    resource_id      TEXT    NOT NULL,
    state            TEXT    NOT NULL CHECK (state = 'waiting' OR state = 'held' OR state = 'dead'
                                            OR state = 'delivered' OR state = 'withdrawn' OR state = 'discarded'),
    desired          TEXT    NOT NULL CHECK (json_valid(desired)),
    generation       INTEGER NOT NULL CHECK (generation >= 0),
    origin           TEXT    NOT NULL,
    mode             TEXT    NOT NULL CHECK (mode = 'whole' OR mode = 'split' OR mode = 'compare'),
    reason           TEXT    NOT NULL,
    created_at       INTEGER NOT NULL,
    due_at           INTEGER NOT NULL,
    attempts         INTEGER NOT NULL CHECK (attempts >= 0),
    failures         INTEGER NOT NULL CHECK (failures >= 0),
    conflicts        INTEGER NOT NULL CHECK (conflicts >= 0),
    rejected         TEXT    NOT NULL CHECK (json_valid(rejected)),
    hold_id          INTEGER REFERENCES hold (id) ON DELETE SET NULL,
    lease_owner      TEXT,
    lease_token      INTEGER,
    lease_expires_at INTEGER,
    in_flight        TEXT    CHECK (json_valid(in_flight)),
    closed_at        INTEGER,
    FOREIGN KEY (installation_id, resource_id) REFERENCES resource (installation_id, resource_id),
    -- A lease is whole, and what it sends is known.
    CHECK ((lease_owner IS NULL) = (lease_token IS NULL)),
    CHECK ((lease_owner IS NULL) = (lease_expires_at IS NULL)),
    CHECK ((lease_owner IS NULL) = (in_flight IS NULL)),
    -- Only what waits can be in flight.
    CHECK (lease_token IS NULL OR state = 'waiting'),
    CHECK ((closed_at IS NULL) = (state = 'waiting' OR state = 'held' OR state = 'dead')),
    CHECK (state <> 'held' OR hold_id IS NOT NULL)
) STRICT;

-- At most one open entry per resource.
CREATE UNIQUE INDEX entry_open ON entry (installation_id, resource_id) WHERE closed_at IS NULL;
-- What can be claimed, by installation (for fair turns) and over all (to see at once that nothing is due). It is counted with all that
-- the index is about in the index itself, so that no entry is read for it.
CREATE INDEX entry_due_by_installation ON entry (installation_id, due_at, id)
    WHERE state = 'waiting' AND lease_token IS NULL;
CREATE INDEX entry_due ON entry (due_at, created_at, state, lease_token)
    WHERE state = 'waiting' AND lease_token IS NULL;
CREATE INDEX entry_lease ON entry (lease_expires_at) WHERE lease_token IS NOT NULL;
-- What a hold keeps back.
CREATE INDEX entry_hold ON entry (hold_id, installation_id, resource_id) WHERE hold_id IS NOT NULL;
-- What waits for a person. Of what can be claimed or is in flight this says nothing, so that a delivery need not write it.
CREATE INDEX entry_resting ON entry (state, created_at) WHERE state = 'held' OR state = 'dead';
CREATE INDEX entry_by_resource ON entry (installation_id, resource_id, id);
CREATE INDEX entry_closed ON entry (closed_at) WHERE closed_at IS NOT NULL;

-- The history of requests that `explain` shows. It outlives its entries, so their numbers are not references: an entry may be pruned
-- weeks before its attempts are.
CREATE TABLE attempt (
    id              INTEGER PRIMARY KEY,
    entry_id        INTEGER NOT NULL,
    number          INTEGER NOT NULL CHECK (number > 0),
    installation_id TEXT    NOT NULL,
    resource_id     TEXT    NOT NULL,
    started_at      INTEGER NOT NULL,
    ended_at        INTEGER NOT NULL,
    method          TEXT    NOT NULL,
    fields          TEXT    NOT NULL CHECK (json_valid(fields)),
    secret_names    TEXT    NOT NULL CHECK (json_valid(secret_names)),
    outcome         TEXT    NOT NULL,
    status          INTEGER,
    error_code      TEXT,
    message         TEXT,
    vercel_id       TEXT
) STRICT;

CREATE INDEX attempt_by_entry ON attempt (entry_id, id);
CREATE INDEX attempt_by_resource ON attempt (installation_id, resource_id, id);
CREATE INDEX attempt_ended ON attempt (ended_at);

-- Installations that Vercel asked to leave alone for a while (429).
CREATE TABLE installation (
    installation_id TEXT    NOT NULL PRIMARY KEY,
    limited_until   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Installations that get no requests: by a person, or since the token or the installation is gone.
CREATE TABLE pause (
    installation_id TEXT    NOT NULL,
    kind            TEXT    NOT NULL CHECK (kind IN ('manual', 'token', 'gone')),
    paused_by       TEXT    NOT NULL,
    reason          TEXT    NOT NULL,
    since           INTEGER NOT NULL,
    ends_at         INTEGER,
    probe_at        INTEGER,
    probes_failed   INTEGER NOT NULL CHECK (probes_failed >= 0),
    PRIMARY KEY (installation_id, kind),
    -- Only a person's pause ends by itself; only the others are probed.
    CHECK (ends_at IS NULL OR kind = 'manual'),
    CHECK (probe_at IS NULL OR kind <> 'manual')
) STRICT, WITHOUT ROWID;

CREATE INDEX pause_probe ON pause (probe_at) WHERE probe_at IS NOT NULL;

-- Rows of the source that cannot be used. A resource has at most one (its slot is empty); rows whose ids cannot name a resource
-- are told apart by their hash, since any number of them may show the same ids (NULL shows as empty).
CREATE TABLE quarantine (
    installation_id TEXT    NOT NULL,
    resource_id     TEXT    NOT NULL,
    slot            BLOB    NOT NULL CHECK (length(slot) IN (0, 16)),
    column_name     TEXT    NOT NULL,
    problem         TEXT    NOT NULL,
    accepted        TEXT    NOT NULL,
    row_hash        BLOB    NOT NULL CHECK (length(row_hash) = 16),
    since           INTEGER NOT NULL,
    -- The last sweep that met it: a row without usable ids that a complete sweep did not meet is gone.
    sweep           INTEGER,
    PRIMARY KEY (installation_id, resource_id, slot)
) STRICT, WITHOUT ROWID;

-- Resources whose row is to be read again since it was no longer what an entry was made from.
CREATE TABLE recheck (
    installation_id TEXT NOT NULL,
    resource_id     TEXT NOT NULL,
    PRIMARY KEY (installation_id, resource_id)
) STRICT, WITHOUT ROWID;

-- Roles that one process holds at a time.
CREATE TABLE lease (
    name       TEXT    NOT NULL PRIMARY KEY,
    owner      TEXT    NOT NULL,
    token      INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What people did, and why: kept for good.
CREATE TABLE act (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    at              INTEGER NOT NULL,
    actor           TEXT    NOT NULL,
    act             TEXT    NOT NULL
                    CHECK (act IN ('retry', 'discard', 'release', 'pause', 'resume', 'adopt', 'compare', 'fix')),
    -- NULL: every installation.
    installation_id TEXT,
    -- NULL: every resource of the installation.
    resource_id     TEXT,
    entry_id        INTEGER,
    reason          TEXT,
    -- When the daemon logged it.
    told_at         INTEGER,
    -- What holds something back from a customer has a reason.
    CHECK (act NOT IN ('discard', 'pause') OR reason IS NOT NULL),
    -- Only a baseline may concern everything; what is done to an entry names it.
    CHECK (installation_id IS NOT NULL OR (act IN ('adopt', 'compare') AND resource_id IS NULL)),
    CHECK ((entry_id IS NOT NULL) = (act IN ('retry', 'discard', 'release'))),
    CHECK ((resource_id IS NOT NULL) = (act IN ('retry', 'discard', 'release', 'fix')))
) STRICT;

CREATE INDEX act_by_installation ON act (installation_id, resource_id, id);
CREATE INDEX act_untold ON act (id) WHERE told_at IS NULL;
