-- Sends a notification on the channel `reconciled` when a transaction that changed resources commits (PostgreSQL 11 or newer),
-- for `[source] listen = "reconciled"`. It carries no data: it says "poll now", and polls on schedule go on without it.
--
-- Write your own name for resources and run it as the owner of the table; it may be run again:
--   psql --dbname provider --single-transaction --set ON_ERROR_STOP=1 --file deploy/source/postgres-notify.sql
-- With the triggers of postgres-updated-at.sql changed plans and secrets notify too, since they touch resources. With the change
-- feed of postgres-feed.sql take postgres-feed-notify.sql instead.
--
-- Equal notifications of one transaction are sent once. Transactions that notify commit one after another in the whole
-- cluster: leave this out where thousands a second change resources. They cannot be prepared: leave it out where
-- PREPARE TRANSACTION is used. To undo it:
--   DROP TRIGGER reconciled_notify ON resources; DROP FUNCTION reconciled_notify();

CREATE OR REPLACE FUNCTION reconciled_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('reconciled', '');
    RETURN NULL;
END $$;

DROP TRIGGER IF EXISTS reconciled_notify ON resources;
CREATE TRIGGER reconciled_notify
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON resources
    FOR EACH STATEMENT EXECUTE FUNCTION reconciled_notify();
