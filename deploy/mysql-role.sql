-- The account with which reconciled reads a provider's MySQL (8.0 or newer) or MariaDB (10.6 or newer) database.
--
-- Run it as an administrator, after writing your own database and tables into the GRANTs below:
--   mysql < deploy/mysql-role.sql
-- It is locked until it has a password:
--   ALTER USER 'reconciled'@'%' IDENTIFIED BY '…' ACCOUNT UNLOCK;
-- Where the database is reached over a network, also: ALTER USER 'reconciled'@'%' REQUIRE SSL;

CREATE USER 'reconciled'@'%'
    -- (daemons + 1) × [source] max_connections, the one more being the new daemon beside the old one while a deployment goes on, and
    -- [source] max_connections for each command that runs at the same time. For 4 daemons, 2 commands and the default of 4:
    -- 5 × 4 + 2 × 4 = 28.
    WITH MAX_USER_CONNECTIONS 30
    ACCOUNT LOCK;

GRANT SELECT ON provider.installations TO 'reconciled'@'%';
GRANT SELECT ON provider.plans TO 'reconciled'@'%';
GRANT SELECT ON provider.resources TO 'reconciled'@'%';
GRANT SELECT ON provider.resource_secrets TO 'reconciled'@'%';

-- With [source] feed: to see which transactions are open, so that polls miss none, however late it commits. It shows other sessions'
-- statements too; without it polls miss what commits later than [source] overlap.
-- GRANT PROCESS ON *.* TO 'reconciled'@'%';
