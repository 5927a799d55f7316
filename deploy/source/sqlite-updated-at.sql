-- Keeps resources.version truthful on SQLite: it grows with every change of what the source query shows, plans and secrets included,
-- whatever the application writes into it. A number and not a time: a clock may be set back, and two writes may share a millisecond.
--
-- Write your own names for resources (id, plan_id), plans (id) and resource_secrets (resource_id), add the column once, then
-- run this; it may be run again:
--   sqlite3 provider.db 'ALTER TABLE resources ADD COLUMN version INTEGER NOT NULL DEFAULT 0'
--   sqlite3 -bail provider.db < deploy/source/sqlite-updated-at.sql

BEGIN IMMEDIATE;

-- The last number given out. Not max(version): that would fall when the newest resource is deleted.
CREATE TABLE IF NOT EXISTS resource_version (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    value INTEGER NOT NULL
);

INSERT OR IGNORE INTO resource_version (id, value)
SELECT 1, coalesce(max(version), 0)
FROM resources;

-- The indexes of polls and sweeps.
CREATE INDEX IF NOT EXISTS resources_by_change ON resources (version);
CREATE INDEX IF NOT EXISTS resources_by_key ON resources (installation_id, id);

DROP TRIGGER IF EXISTS reconciled_stamp_added;
CREATE TRIGGER reconciled_stamp_added AFTER INSERT ON resources
BEGIN
    UPDATE resource_version SET value = value + 1;
    UPDATE resources SET version = (SELECT value FROM resource_version) WHERE id = NEW.id;
END;

-- Not for the updates that the triggers themselves make: those bring the number that was given out last.
DROP TRIGGER IF EXISTS reconciled_stamp_changed;
CREATE TRIGGER reconciled_stamp_changed AFTER UPDATE ON resources
WHEN NEW.version IS OLD.version
  OR NEW.version IS NOT (SELECT value FROM resource_version)
BEGIN
    UPDATE resource_version SET value = value + 1;
    UPDATE resources SET version = (SELECT value FROM resource_version) WHERE id = NEW.id;
END;

DROP TRIGGER IF EXISTS reconciled_secret_added;
CREATE TRIGGER reconciled_secret_added AFTER INSERT ON resource_secrets
BEGIN
    UPDATE resource_version SET value = value + 1;
    UPDATE resources SET version = (SELECT value FROM resource_version) WHERE id = NEW.resource_id;
END;

DROP TRIGGER IF EXISTS reconciled_secret_changed;
CREATE TRIGGER reconciled_secret_changed AFTER UPDATE ON resource_secrets
BEGIN
    UPDATE resource_version SET value = value + 1;
    UPDATE resources SET version = (SELECT value FROM resource_version)
    WHERE id IN (OLD.resource_id, NEW.resource_id);
END;

DROP TRIGGER IF EXISTS reconciled_secret_removed;
CREATE TRIGGER reconciled_secret_removed AFTER DELETE ON resource_secrets
BEGIN
    UPDATE resource_version SET value = value + 1;
    UPDATE resources SET version = (SELECT value FROM resource_version) WHERE id = OLD.resource_id;
END;

DROP TRIGGER IF EXISTS reconciled_plan_changed;
CREATE TRIGGER reconciled_plan_changed AFTER UPDATE ON plans
BEGIN
    UPDATE resource_version SET value = value + 1;
    UPDATE resources SET version = (SELECT value FROM resource_version) WHERE plan_id = NEW.id;
END;

COMMIT;
