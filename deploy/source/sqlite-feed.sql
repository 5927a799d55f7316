-- A change feed on SQLite for `[source] feed = "reconciled_feed"`: triggers name each resource that changed, plans and secrets included.
-- For schemas without a column that grows with every change; no column of yours is touched.
--
-- Write your own names for resources (id, installation_id, plan_id), plans (id) and resource_secrets (resource_id), then run it; it
-- may be run again:
--   sqlite3 -bail provider.db < deploy/source/sqlite-feed.sql
--
-- Writers exclude each other, so the numbers become visible in order and nothing is missed.
--
-- A job of yours trims the feed, for instance once a day. It keeps the newest entry, by which the daemon sees that it missed nothing, and
-- what is younger than a week: a daemon that was away for longer reads every row instead.
--   DELETE FROM reconciled_feed
--   WHERE changed_at < datetime('now', '-7 days')
--     AND sequence < (SELECT max(sequence) FROM reconciled_feed);
--
-- To undo it: DROP TABLE reconciled_feed; and DROP TRIGGER for each of those below.

BEGIN IMMEDIATE;

-- AUTOINCREMENT: a number is never given out twice.
CREATE TABLE IF NOT EXISTS reconciled_feed (
    sequence        INTEGER PRIMARY KEY AUTOINCREMENT,
    installation_id TEXT,
    resource_id     TEXT,
    changed_at      TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now'))
);

DROP TRIGGER IF EXISTS reconciled_feed_resource_added;
CREATE TRIGGER reconciled_feed_resource_added AFTER INSERT ON resources
BEGIN
    INSERT INTO reconciled_feed (installation_id, resource_id) VALUES (NEW.installation_id, NEW.id);
END;

DROP TRIGGER IF EXISTS reconciled_feed_resource_changed;
CREATE TRIGGER reconciled_feed_resource_changed AFTER UPDATE ON resources
BEGIN
    INSERT INTO reconciled_feed (installation_id, resource_id) VALUES (NEW.installation_id, NEW.id);
END;

DROP TRIGGER IF EXISTS reconciled_feed_resource_removed;
CREATE TRIGGER reconciled_feed_resource_removed AFTER DELETE ON resources
BEGIN
    INSERT INTO reconciled_feed (installation_id, resource_id) VALUES (OLD.installation_id, OLD.id);
END;

DROP TRIGGER IF EXISTS reconciled_feed_secret_added;
CREATE TRIGGER reconciled_feed_secret_added AFTER INSERT ON resource_secrets
BEGIN
    INSERT INTO reconciled_feed (installation_id, resource_id)
    SELECT installation_id, id FROM resources WHERE id = NEW.resource_id;
END;

DROP TRIGGER IF EXISTS reconciled_feed_secret_changed;
CREATE TRIGGER reconciled_feed_secret_changed AFTER UPDATE ON resource_secrets
BEGIN
    INSERT INTO reconciled_feed (installation_id, resource_id)
    SELECT installation_id, id FROM resources WHERE id IN (OLD.resource_id, NEW.resource_id);
END;

DROP TRIGGER IF EXISTS reconciled_feed_secret_removed;
CREATE TRIGGER reconciled_feed_secret_removed AFTER DELETE ON resource_secrets
BEGIN
    INSERT INTO reconciled_feed (installation_id, resource_id)
    SELECT installation_id, id FROM resources WHERE id = OLD.resource_id;
END;

-- A changed plan names every resource that has it.
DROP TRIGGER IF EXISTS reconciled_feed_plan_changed;
CREATE TRIGGER reconciled_feed_plan_changed AFTER UPDATE ON plans
BEGIN
    INSERT INTO reconciled_feed (installation_id, resource_id)
    SELECT installation_id, id FROM resources WHERE plan_id = NEW.id;
END;

COMMIT;
