-- A provider's schema as it may be, with a few rows: what the example configuration reads.

CREATE TABLE installations (
    id                  text PRIMARY KEY,
    vercel_access_token text NOT NULL,
    removed_at          timestamptz
);

CREATE TABLE plans (
    id                  text PRIMARY KEY,
    type                text NOT NULL CHECK (type IN ('prepayment', 'subscription')),
    name                text NOT NULL,
    cost                text NOT NULL,
    highlighted_details jsonb NOT NULL DEFAULT '[]'
);

CREATE TABLE resources (
    id              text PRIMARY KEY,
    installation_id text NOT NULL REFERENCES installations,
    plan_id         text NOT NULL REFERENCES plans,
    name            text NOT NULL,
    state           text NOT NULL CHECK (state IN ('provisioning', 'active', 'suspended', 'deleted', 'failed')),
    metadata        jsonb NOT NULL DEFAULT '{}',
    notice          text,
    updated_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The orders in which reconciled reads, in polls and in sweeps: without them each page reads the whole table.
CREATE INDEX resources_changed ON resources (updated_at, installation_id, id);
CREATE INDEX resources_by_key ON resources (installation_id, id);

CREATE TABLE resource_secrets (
    resource_id text NOT NULL REFERENCES resources ON DELETE CASCADE,
    name        text NOT NULL,
    value       text NOT NULL,
    PRIMARY KEY (resource_id, name)
);

-- Whatever changes what a resource shows moves its `updated_at`.
CREATE FUNCTION resource_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END $$;

CREATE FUNCTION secret_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        UPDATE resources SET updated_at = clock_timestamp() WHERE id = OLD.resource_id;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        UPDATE resources SET updated_at = clock_timestamp() WHERE id = NEW.resource_id;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION plan_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE resources SET updated_at = clock_timestamp() WHERE plan_id = NEW.id;
    RETURN NULL;
END $$;

CREATE TRIGGER resource_changed BEFORE UPDATE ON resources
    FOR EACH ROW EXECUTE FUNCTION resource_changed();
CREATE TRIGGER secret_changed AFTER INSERT OR UPDATE OR DELETE ON resource_secrets
    FOR EACH ROW EXECUTE FUNCTION secret_changed();
CREATE TRIGGER plan_changed AFTER UPDATE ON plans
    FOR EACH ROW EXECUTE FUNCTION plan_changed();

INSERT INTO installations (id, vercel_access_token) VALUES
    ('icfg_example1', 'example-token-1'),
    ('icfg_example2', 'example-token-2');

INSERT INTO plans (id, type, name, cost, highlighted_details) VALUES
    ('hobby', 'subscription', 'Hobby', '$0.00', '[{"label": "Storage", "value": "1 GB"}]'),
    ('pro', 'subscription', 'Pro', '$20.00', '[{"label": "Storage", "value": "100 GB"}]');

INSERT INTO resources (id, installation_id, plan_id, name, state, metadata) VALUES
    ('db_orders', 'icfg_example1', 'pro', 'orders', 'active', '{"region": "iad1"}'),
    ('db_cache', 'icfg_example1', 'hobby', 'cache', 'provisioning', '{"region": "iad1"}'),
    ('db_search', 'icfg_example2', 'hobby', 'search', 'suspended', '{"region": "fra1"}');

INSERT INTO resource_secrets (resource_id, name, value) VALUES
    ('db_orders', 'DATABASE_URL', 'postgres://orders:example@db.example/orders'),
    ('db_orders', 'DATABASE_URL_UNPOOLED', 'postgres://orders:example@direct.db.example/orders'),
    ('db_search', 'SEARCH_KEY', 'example-search-key');
