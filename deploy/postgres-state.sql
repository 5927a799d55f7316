-- The role and the schema with which daemons keep their state in a PostgreSQL database: they own the schema and nothing else.
--
-- Run it with psql as a role that may create roles and schemas:
--   psql --dbname operations --single-transaction --set ON_ERROR_STOP=1 --file deploy/postgres-state.sql
-- Then set a password, which psql hashes before it leaves the terminal:
--   psql --dbname operations --command '\password reconciled_state'
-- and name it in [state] url (or url_file): postgres://reconciled_state:…@db.internal/operations
--
-- The database's encoding has to be UTF8. It may be the provider's own: the schema is apart, and the role that reads the source
-- is another one.

CREATE ROLE reconciled_state
    LOGIN
    NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION
    -- (daemons + 1) × [state] max_connections, the one more being the new daemon beside the old one while a deployment goes on, and
    -- [state] max_connections for each command that runs at the same time. For 4 daemons, 2 commands and the default of 4:
    -- 5 × 4 + 2 × 4 = 28.
    CONNECTION LIMIT 30;

-- Daemons make their tables themselves, at the first start and after an update.
CREATE SCHEMA reconciled AUTHORIZATION reconciled_state;

SELECT format('GRANT CONNECT ON DATABASE %I TO reconciled_state', current_database()) \gexec
