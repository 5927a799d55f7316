-- Keeps resources.updated_at truthful on PostgreSQL (11 or newer): it moves with every change of what the source query shows,
-- plans and secrets included, whatever the application writes into it.
--
-- Write your own names for resources (id, plan_id, updated_at), plans (id) and resource_secrets (resource_id), then run it as
-- the owner of the tables; it may be run again:
--   psql --dbname provider --single-transaction --set ON_ERROR_STOP=1 --file deploy/source/postgres-updated-at.sql
-- Then the indexes of polls and sweeps, without blocking writers:
--   psql --dbname provider --command 'CREATE INDEX CONCURRENTLY resources_by_change ON resources (updated_at)'
--   psql --dbname provider --command 'CREATE INDEX CONCURRENTLY resources_by_key ON resources (installation_id, id)'
--
-- Roles that write to plans or resource_secrets need UPDATE (updated_at) on resources, and they lock the rows they touch.
-- TRUNCATE, pg_restore --disable-triggers and logical replication fire none of these triggers: sweeps find what those changed.

ALTER TABLE resources ADD COLUMN IF NOT EXISTS updated_at timestamptz NOT NULL DEFAULT now();

-- clock_timestamp() and not now(): a long transaction then leaves less time between the cursor and its commit.
CREATE OR REPLACE FUNCTION reconciled_stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END $$;

DROP TRIGGER IF EXISTS reconciled_stamp ON resources;
CREATE TRIGGER reconciled_stamp
    BEFORE INSERT OR UPDATE ON resources
    FOR EACH ROW EXECUTE FUNCTION reconciled_stamp();

-- Once per statement and resource, however many secrets the statement changes.
CREATE OR REPLACE FUNCTION reconciled_touch_by_secret() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP IN ('UPDATE', 'DELETE') THEN
        UPDATE resources
        SET updated_at = clock_timestamp()
        WHERE id IN (SELECT resource_id FROM before);
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        UPDATE resources
        SET updated_at = clock_timestamp()
        WHERE id IN (SELECT resource_id FROM after);
    END IF;
    RETURN NULL;
END $$;

DROP TRIGGER IF EXISTS reconciled_secret_added ON resource_secrets;
CREATE TRIGGER reconciled_secret_added
    AFTER INSERT ON resource_secrets
    REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION reconciled_touch_by_secret();

DROP TRIGGER IF EXISTS reconciled_secret_changed ON resource_secrets;
CREATE TRIGGER reconciled_secret_changed
    AFTER UPDATE ON resource_secrets
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION reconciled_touch_by_secret();

DROP TRIGGER IF EXISTS reconciled_secret_removed ON resource_secrets;
CREATE TRIGGER reconciled_secret_removed
    AFTER DELETE ON resource_secrets
    REFERENCING OLD TABLE AS before
    FOR EACH STATEMENT EXECUTE FUNCTION reconciled_touch_by_secret();

-- A changed plan touches every resource that has it. That of a popular plan is a large transaction: change it at a quiet hour.
CREATE OR REPLACE FUNCTION reconciled_touch_by_plan() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE resources
    SET updated_at = clock_timestamp()
    WHERE plan_id IN (SELECT id FROM after);
    RETURN NULL;
END $$;

DROP TRIGGER IF EXISTS reconciled_plan_changed ON plans;
CREATE TRIGGER reconciled_plan_changed
    AFTER UPDATE ON plans
    REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION reconciled_touch_by_plan();
