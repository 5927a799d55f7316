-- The role with which reconciled reads a provider's PostgreSQL database: it can read four tables and write nothing.
--
-- Run it with psql as the owner of the database, after writing your own tables into the GRANT below:
--   psql --dbname provider --single-transaction --set ON_ERROR_STOP=1 --file deploy/postgres-role.sql
-- Then set a password, which psql hashes before it leaves the terminal:
--   psql --dbname provider --command '\password reconciled'

CREATE ROLE reconciled
    LOGIN
    NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION
    -- (daemons + 1) × ([source] max_connections + 2), the one more being the new daemon beside the old one while a deployment goes
    -- on and the 2 being what [source] listen takes (one, and another for a moment when that connects), and [source] max_connections
    -- for each command that runs at the same time. For 4 daemons, 2 commands and the default of 4: 5 × (4 + 2) + 2 × 4 = 38. One
    -- daemon alone, with its successor and one command, needs 16.
    CONNECTION LIMIT 40;

-- Guard rails for a query that goes wrong. The daemon sets its own, shorter ones, and reads in READ ONLY transactions.
ALTER ROLE reconciled SET default_transaction_read_only = on;
ALTER ROLE reconciled SET statement_timeout = '60s';
ALTER ROLE reconciled SET lock_timeout = '5s';
ALTER ROLE reconciled SET idle_in_transaction_session_timeout = '60s';

SELECT format('GRANT CONNECT ON DATABASE %I TO reconciled', current_database()) \gexec
GRANT USAGE ON SCHEMA public TO reconciled;
GRANT SELECT ON installations, plans, resources, resource_secrets TO reconciled;

-- Shows when the oldest open transaction of any role began. With it no late commit is missed; without it the daemon
-- relies on [source] overlap. It also shows other sessions' statements.
GRANT pg_read_all_stats TO reconciled;

-- Up to PostgreSQL 14 every role may create tables in the schema public. `reconciled check` warns where that is so:
--   REVOKE CREATE ON SCHEMA public FROM PUBLIC;
