-- Keeps resources.updated_at truthful on MySQL (8.0 or newer) and MariaDB (10.6 or newer): it moves with every change of what
-- the source query shows, plans and secrets included, whatever the application writes into it.
--
-- Write your own names for resources (id, plan_id, updated_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)), plans (id) and resource_secrets
-- (resource_id), then run it as an account with TRIGGER on them; it may be run again:
--   mysql provider < deploy/source/mysql-updated-at.sql
-- Then the indexes of polls and sweeps:
--   CREATE INDEX resources_by_change ON resources (updated_at);
--   CREATE INDEX resources_by_key ON resources (installation_id, id);
--
-- The time is UTC: the local time of a DATETIME goes back an hour every autumn.
--
-- Foreign keys that cascade fire no triggers. A statement that writes to resource_secrets or plans must not name resources as well
-- (INSERT … SELECT … FROM resources, UPDATE … JOIN resources): the server refuses it with error 1442. Read first, then write.

DROP TRIGGER IF EXISTS reconciled_stamp_added;
CREATE TRIGGER reconciled_stamp_added BEFORE INSERT ON resources
    FOR EACH ROW SET NEW.updated_at = UTC_TIMESTAMP(6);

DROP TRIGGER IF EXISTS reconciled_stamp_changed;
CREATE TRIGGER reconciled_stamp_changed BEFORE UPDATE ON resources
    FOR EACH ROW SET NEW.updated_at = UTC_TIMESTAMP(6);

DROP TRIGGER IF EXISTS reconciled_secret_added;
CREATE TRIGGER reconciled_secret_added AFTER INSERT ON resource_secrets
    FOR EACH ROW
    UPDATE resources
    SET updated_at = UTC_TIMESTAMP(6)
    WHERE id = NEW.resource_id;

DROP TRIGGER IF EXISTS reconciled_secret_changed;
CREATE TRIGGER reconciled_secret_changed AFTER UPDATE ON resource_secrets
    FOR EACH ROW
    UPDATE resources
    SET updated_at = UTC_TIMESTAMP(6)
    WHERE id IN (OLD.resource_id, NEW.resource_id);

DROP TRIGGER IF EXISTS reconciled_secret_removed;
CREATE TRIGGER reconciled_secret_removed AFTER DELETE ON resource_secrets
    FOR EACH ROW
    UPDATE resources
    SET updated_at = UTC_TIMESTAMP(6)
    WHERE id = OLD.resource_id;

-- A changed plan touches every resource that has it: change that of a popular plan at a quiet hour.
DROP TRIGGER IF EXISTS reconciled_plan_changed;
CREATE TRIGGER reconciled_plan_changed AFTER UPDATE ON plans
    FOR EACH ROW
    UPDATE resources
    SET updated_at = UTC_TIMESTAMP(6)
    WHERE plan_id = NEW.id;
