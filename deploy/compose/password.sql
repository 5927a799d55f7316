-- A password for a database that nothing outside the compose network reaches.
ALTER ROLE reconciled PASSWORD 'example';
