-- The account with which reconciled reads a provider's MySQL (8.0 or newer) or MariaDB (10.6 or newer) database.
--
-- Run it as an administrator, after writing your own database and tables into the GRANTs below:
--   mysql < deploy/mysql-role.sql
-- It is locked until it has a password:
--   ALTER USER 'reconciled'@'%' IDENTIFIED BY '…' ACCOUNT UNLOCK;
-- Where the database is reached over a network, also: ALTER USER 'reconciled'@'%' REQUIRE SSL;

CREATE USER 'reconciled'@'%'
    -- [source] max_connections and as many again for commands run by hand.
    WITH MAX_USER_CONNECTIONS 8
    ACCOUNT LOCK;

GRANT SELECT ON provider.installations TO 'reconciled'@'%';
GRANT SELECT ON provider.plans TO 'reconciled'@'%';
GRANT SELECT ON provider.resources TO 'reconciled'@'%';
GRANT SELECT ON provider.resource_secrets TO 'reconciled'@'%';

-- With [source] feed: to see which transactions are open, so that polls miss none, however late it commits. It shows other sessions'
-- statements too; without it polls miss what commits later than [source] overlap.
-- GRANT PROCESS ON *.* TO 'reconciled'@'%';
