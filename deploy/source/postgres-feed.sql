-- A change feed on PostgreSQL (13 or newer) for `[source] feed = "reconciled_feed"`: triggers name each resource that changed, plans and
-- secrets included. For schemas without a column that grows with every change; no column of yours is touched.
--
-- Write your own names for resources (id, installation_id, plan_id), plans (id), resource_secrets (resource_id) and the schema
-- public, then run it as the owner of the tables; it may be run again:
--   psql --dbname provider --single-transaction --set ON_ERROR_STOP=1 --file deploy/source/postgres-feed.sql
-- Then let the daemon read it:
--   psql --dbname provider --command 'GRANT SELECT ON reconciled_feed TO reconciled'
-- For `[source] listen` besides, run postgres-feed-notify.sql.
--
-- Each changed resource costs the transaction that changes it one row of about 100 bytes. The functions run with the rights of their
-- owner, so that whoever may write to resources needs no right to the feed.
-- TRUNCATE, pg_restore --disable-triggers and logical replication fire none of these triggers: sweeps find what those changed.
--
-- A job of yours trims the feed, for instance once a day. It keeps the newest entry, by which the daemon sees that it missed nothing, and
-- what is younger than a week: a daemon that was away for longer reads every row instead.
--   DELETE FROM reconciled_feed
--   WHERE changed_at < now() - interval '7 days'
--     AND sequence < (SELECT max(sequence) FROM reconciled_feed);
--
-- To undo it: DROP TABLE reconciled_feed; DROP FUNCTION reconciled_feed_resource, reconciled_feed_secret, reconciled_feed_plan CASCADE;

CREATE TABLE IF NOT EXISTS public.reconciled_feed (
    sequence        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Numbers become visible out of order; with the transaction's id the daemon knows which entries it has not seen.
    transaction_id  xid8 NOT NULL DEFAULT pg_current_xact_id(),
    installation_id text,
    resource_id     text,
    changed_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX IF NOT EXISTS reconciled_feed_by_transaction ON public.reconciled_feed (transaction_id, sequence);

CREATE OR REPLACE FUNCTION public.reconciled_feed_resource() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO public.reconciled_feed (installation_id, resource_id)
        SELECT installation_id::text, id::text FROM after;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO public.reconciled_feed (installation_id, resource_id)
        SELECT installation_id::text, id::text FROM before;
    ELSE
        INSERT INTO public.reconciled_feed (installation_id, resource_id)
        SELECT installation_id::text, id::text FROM before
        UNION
        SELECT installation_id::text, id::text FROM after;
    END IF;
    RETURN NULL;
END $$;

DROP TRIGGER IF EXISTS reconciled_feed_added ON public.resources;
CREATE TRIGGER reconciled_feed_added
    AFTER INSERT ON public.resources
    REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION public.reconciled_feed_resource();

DROP TRIGGER IF EXISTS reconciled_feed_changed ON public.resources;
CREATE TRIGGER reconciled_feed_changed
    AFTER UPDATE ON public.resources
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION public.reconciled_feed_resource();

DROP TRIGGER IF EXISTS reconciled_feed_removed ON public.resources;
CREATE TRIGGER reconciled_feed_removed
    AFTER DELETE ON public.resources
    REFERENCING OLD TABLE AS before
    FOR EACH STATEMENT EXECUTE FUNCTION public.reconciled_feed_resource();

CREATE OR REPLACE FUNCTION public.reconciled_feed_secret() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF TG_OP IN ('UPDATE', 'DELETE') THEN
        INSERT INTO public.reconciled_feed (installation_id, resource_id)
        SELECT installation_id::text, id::text
        FROM public.resources
        WHERE id IN (SELECT resource_id FROM before);
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        INSERT INTO public.reconciled_feed (installation_id, resource_id)
        SELECT installation_id::text, id::text
        FROM public.resources
        WHERE id IN (SELECT resource_id FROM after);
    END IF;
    RETURN NULL;
END $$;

DROP TRIGGER IF EXISTS reconciled_feed_added ON public.resource_secrets;
CREATE TRIGGER reconciled_feed_added
    AFTER INSERT ON public.resource_secrets
    REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION public.reconciled_feed_secret();

DROP TRIGGER IF EXISTS reconciled_feed_changed ON public.resource_secrets;
CREATE TRIGGER reconciled_feed_changed
    AFTER UPDATE ON public.resource_secrets
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION public.reconciled_feed_secret();

DROP TRIGGER IF EXISTS reconciled_feed_removed ON public.resource_secrets;
CREATE TRIGGER reconciled_feed_removed
    AFTER DELETE ON public.resource_secrets
    REFERENCING OLD TABLE AS before
    FOR EACH STATEMENT EXECUTE FUNCTION public.reconciled_feed_secret();

-- A changed plan names every resource that has it: change that of a popular plan at a quiet hour.
CREATE OR REPLACE FUNCTION public.reconciled_feed_plan() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO public.reconciled_feed (installation_id, resource_id)
    SELECT installation_id::text, id::text
    FROM public.resources
    WHERE plan_id IN (SELECT id FROM after);
    RETURN NULL;
END $$;

DROP TRIGGER IF EXISTS reconciled_feed_changed ON public.plans;
CREATE TRIGGER reconciled_feed_changed
    AFTER UPDATE ON public.plans
    REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION public.reconciled_feed_plan();
