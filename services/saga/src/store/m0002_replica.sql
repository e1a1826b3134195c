-- The processes that share the logs of this database: each tells that it lives. Who holds a log stands beside its
-- checkpoint as `owner`, '' for nobody; `lease_until` is only for builds that do not know this table.
create table saga_replica(
  region smallint not null,
  id text collate "C" not null,
  heartbeat_at timestamptz not null,
  primary key (region, id)) with (fillfactor = 50);
