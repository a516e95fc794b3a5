-- What a client may pull, for as long as it shows the secret. Times are milliseconds since 1970.
CREATE TABLE keys (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    -- Keyed hashes of the secret and of the one before it, which works until then.
    hash TEXT NOT NULL,
    previous_hash TEXT,
    previous_until BIGINT,
    -- JSON arrays of patterns and of networks.
    scopes TEXT NOT NULL,
    networks TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    not_before BIGINT,
    expires_at BIGINT,
    revoked_at BIGINT,
    last_used_at BIGINT,
    uses BIGINT NOT NULL,
    -- Grows with every change of any key, so that nodes see what is new.
    revision BIGINT NOT NULL
);
CREATE INDEX keys_by_revision ON keys (revision);

CREATE TABLE counters (
    name TEXT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('keys', 0);

-- Which secret the hashes above are made with, by a hash of its own: nodes that have another one are told so.
CREATE TABLE secrets (
    fingerprint TEXT NOT NULL PRIMARY KEY
);

-- Up to which revision each running node knows the keys.
CREATE TABLE nodes (
    id TEXT NOT NULL PRIMARY KEY,
    seen BIGINT NOT NULL,
    at BIGINT NOT NULL
);
