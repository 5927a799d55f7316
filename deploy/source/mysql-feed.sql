-- A change feed on MySQL (8.0 or newer) and MariaDB (10.6 or newer) for `[source] feed = "reconciled_feed"`: triggers name each resource
-- that changed, plans and secrets included. For schemas without a column that grows with every change; no column of yours is touched.
--
-- Write your own names for resources (id, installation_id, plan_id), plans (id) and resource_secrets (resource_id), then run it as an
-- account with CREATE and TRIGGER on them; it may be run again:
--   mysql provider < deploy/source/mysql-feed.sql
--   mysql provider --execute "GRANT SELECT ON reconciled_feed TO 'reconciled'@'%'"
--
-- Numbers become visible out of order when transactions commit out of order. With GRANT PROCESS ON *.* the daemon looks for
-- those left out until all transactions have ended that were open when it missed them. Without it, until they have been missing for
-- `[source] overlap`: keep it above your longest transaction that writes. In a cluster with several writers it is no more
-- than that either: a change made on another node arrives with its number when it is applied.
--
-- Foreign keys that cascade fire no triggers. With binlog_format = STATEMENT the server warns of AUTO_INCREMENT in triggers: use ROW.
--
-- A job of yours trims the feed, for instance once a day. It keeps the newest entry, by which the daemon sees that it missed nothing, and
-- what is younger than a week: a daemon that was away for longer reads every row instead.
--   DELETE FROM reconciled_feed
--   WHERE changed_at < UTC_TIMESTAMP() - INTERVAL 7 DAY
--     AND sequence < (SELECT newest FROM (SELECT MAX(sequence) AS newest FROM reconciled_feed) AS entries)
--   LIMIT 10000;
--
-- To undo it: DROP TABLE reconciled_feed; and DROP TRIGGER for each of those below.

CREATE TABLE IF NOT EXISTS reconciled_feed (
    sequence        BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    installation_id VARCHAR(512),
    resource_id     VARCHAR(512),
    changed_at      DATETIME(6) NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4;

-- An id of more than 512 characters is none of Vercel's; cutting it keeps your own statement from failing.
DROP TRIGGER IF EXISTS reconciled_feed_resource_added;
CREATE TRIGGER reconciled_feed_resource_added AFTER INSERT ON resources
    FOR EACH ROW
    INSERT INTO reconciled_feed (installation_id, resource_id, changed_at)
    VALUES (LEFT(NEW.installation_id, 512), LEFT(NEW.id, 512), UTC_TIMESTAMP(6));

DROP TRIGGER IF EXISTS reconciled_feed_resource_changed;
CREATE TRIGGER reconciled_feed_resource_changed AFTER UPDATE ON resources
    FOR EACH ROW
    INSERT INTO reconciled_feed (installation_id, resource_id, changed_at)
    VALUES (LEFT(NEW.installation_id, 512), LEFT(NEW.id, 512), UTC_TIMESTAMP(6));

DROP TRIGGER IF EXISTS reconciled_feed_resource_removed;
CREATE TRIGGER reconciled_feed_resource_removed AFTER DELETE ON resources
    FOR EACH ROW
    INSERT INTO reconciled_feed (installation_id, resource_id, changed_at)
    VALUES (LEFT(OLD.installation_id, 512), LEFT(OLD.id, 512), UTC_TIMESTAMP(6));

DROP TRIGGER IF EXISTS reconciled_feed_secret_added;
CREATE TRIGGER reconciled_feed_secret_added AFTER INSERT ON resource_secrets
    FOR EACH ROW
    INSERT INTO reconciled_feed (installation_id, resource_id, changed_at)
    VALUES (
        (SELECT LEFT(installation_id, 512) FROM resources WHERE id = NEW.resource_id),
        LEFT(NEW.resource_id, 512),
        UTC_TIMESTAMP(6)
    );

DROP TRIGGER IF EXISTS reconciled_feed_secret_changed;
CREATE TRIGGER reconciled_feed_secret_changed AFTER UPDATE ON resource_secrets
    FOR EACH ROW
    INSERT INTO reconciled_feed (installation_id, resource_id, changed_at)
    SELECT LEFT(installation_id, 512), LEFT(id, 512), UTC_TIMESTAMP(6)
    FROM resources
    WHERE id IN (OLD.resource_id, NEW.resource_id);

DROP TRIGGER IF EXISTS reconciled_feed_secret_removed;
CREATE TRIGGER reconciled_feed_secret_removed AFTER DELETE ON resource_secrets
    FOR EACH ROW
    INSERT INTO reconciled_feed (installation_id, resource_id, changed_at)
    VALUES (
        (SELECT LEFT(installation_id, 512) FROM resources WHERE id = OLD.resource_id),
        LEFT(OLD.resource_id, 512),
        UTC_TIMESTAMP(6)
    );

-- A changed plan names every resource that has it: change that of a popular plan at a quiet hour.
DROP TRIGGER IF EXISTS reconciled_feed_plan_changed;
CREATE TRIGGER reconciled_feed_plan_changed AFTER UPDATE ON plans
    FOR EACH ROW
    INSERT INTO reconciled_feed (installation_id, resource_id, changed_at)
    SELECT LEFT(installation_id, 512), LEFT(id, 512), UTC_TIMESTAMP(6)
    FROM resources
    WHERE plan_id = NEW.id;
