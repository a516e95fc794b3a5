-- The keys that sign tokens. Times are milliseconds since 1970.
CREATE TABLE signing_keys (
    id TEXT NOT NULL PRIMARY KEY,
    -- PKCS #8, sealed with the edge's secret.
    sealed TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
