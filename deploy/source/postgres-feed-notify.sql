-- Sends a notification on the channel `reconciled` when a transaction that added to the change feed of postgres-feed.sql commits:
-- whatever a resource shows, plans and secrets included. For `[source] listen = "reconciled"` beside `feed = "reconciled_feed"`. It
-- carries no data: it says "poll now", and polls on schedule go on without it.
--
-- Write your own name for the schema public and run it as the owner of the feed, after postgres-feed.sql and again whenever the feed
-- was made anew:
--   psql --dbname provider --single-transaction --set ON_ERROR_STOP=1 --file deploy/source/postgres-feed-notify.sql
--
-- Equal notifications of one transaction are sent once. Transactions that notify commit one after another in the whole
-- cluster: leave this out where thousands a second change resources. They cannot be prepared: leave it out where
-- PREPARE TRANSACTION is used. To undo it:
--   DROP TRIGGER reconciled_feed_notify ON reconciled_feed; DROP FUNCTION reconciled_feed_notify();

CREATE OR REPLACE FUNCTION public.reconciled_feed_notify() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    -- A statement that changed no row adds none.
    IF EXISTS (SELECT FROM added) THEN
        PERFORM pg_notify('reconciled', '');
    END IF;
    RETURN NULL;
END $$;

DROP TRIGGER IF EXISTS reconciled_feed_notify ON public.reconciled_feed;
CREATE TRIGGER reconciled_feed_notify
    AFTER INSERT ON public.reconciled_feed
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION public.reconciled_feed_notify();
