-- The write store. Every table of a log begins with (region, partition), so that a partition can be moved and a region added.

create table installation(
  one boolean primary key default true check (one),
  id uuid not null,
  partitions int not null check (partitions > 0),
  created_at timestamptz not null default now());

-- Which database holds a partition; rows stand in the first write database only.
create table placement(
  region smallint not null,
  partition int not null,
  database text not null,
  version bigint not null default 1,
  primary key (region, partition));

-- What the owner of a log believes is compared with this row before anything is written (law 6). The hottest rows of the
-- system: a low fill factor keeps their updates on the page.
create table partition_head(
  region smallint not null,
  partition int not null,
  epoch bigint not null default 0,
  batch bigint not null default 0,
  position bigint not null default 0,
  hash bytea not null,
  primary key (region, partition)) with (fillfactor = 20);

-- Epoch history of each log (law 13).
create table epoch_start(
  region smallint not null,
  partition int not null,
  epoch bigint not null,
  first_position bigint not null,
  owner text not null,
  started_ms bigint not null,
  primary key (region, partition, epoch));

create table stream_head(
  region smallint not null,
  partition int not null,
  stream text collate "C" not null,
  version bigint not null,
  primary key (region, partition, stream)) with (fillfactor = 80);

-- List-partitioned by region and partition above ranges of position. Unique indexes stand on the children; uniqueness
-- across children follows from fence and stream heads.
create table event(
  region smallint not null,
  partition int not null,
  position bigint not null,
  epoch bigint not null,
  hash bytea not null,
  stream text collate "C" not null,
  version bigint not null,
  type text collate "C" not null,
  schema_version int not null,
  payload bytea not null,
  event_id uuid not null,
  request_id uuid,
  causation_id uuid,
  correlation_id uuid,
  actor text not null,
  hlc bigint not null,
  traceparent text not null,
  home_epoch bigint not null,
  key_id uuid) partition by list (region);

-- The journal of commands. A bucket is the UTC day of the request id's own time (version 7) or of recording (others);
-- buckets are dropped whole once ids of their time are refused.
create table ledger(
  region smallint not null,
  partition int not null,
  bucket int not null,
  stream text collate "C" not null,
  request_id uuid not null,
  method text not null,
  command bytea not null,
  fingerprint bytea not null,
  reply bytea not null,
  actor text not null,
  recorded_ms bigint not null) partition by list (bucket);

create table snapshot(
  region smallint not null,
  partition int not null,
  stream text collate "C" not null,
  version bigint not null,
  position bigint not null,
  fold_version int not null,
  state bytea not null,
  primary key (region, partition, stream));

-- One heartbeat per replica of the command service, apart from the leases.
-- A replica that is leaving is given nothing more.
create table replica(
  id text collate "C" primary key,
  internal_address text not null,
  public_address text not null,
  leaving boolean not null,
  heartbeat_at timestamptz not null);

create table lease(
  region smallint not null,
  partition int not null,
  owner text not null,
  epoch bigint not null,
  primary key (region, partition));

-- Creates one child of the event table and the levels above it. Attaching a ready table takes no lock that a long reader
-- could hold up, as `create table … partition of` would.
create function souk_add_event_child(r int, p int, low bigint, high bigint) returns void language plpgsql as $$
declare
  of_region text := format('event_r%s', r);
  of_partition text := format('event_r%s_p%s', r, p);
  child text := format('event_r%s_p%s_%s', r, p, low);
begin
  if exists (select from pg_inherits where inhrelid = to_regclass(child)) then return; end if;
  perform pg_advisory_xact_lock(hashtext('souk_add_child'));
  if to_regclass(of_region) is null then
    execute format('create table %I (like event) partition by list (partition)', of_region);
    execute format('alter table event attach partition %I for values in (%s)', of_region, r);
  end if;
  if to_regclass(of_partition) is null then
    execute format('create table %I (like event) partition by range (position)', of_partition);
    execute format('alter table %I attach partition %I for values in (%s)', of_region, of_partition, p);
  end if;
  if to_regclass(child) is null then
    execute format('create table %I (like event, check (region = %s and partition = %s and position >= %s and position < %s))',
      child, r, p, low, high);
    execute format('create unique index %I on %I (position)', child || '_position', child);
    execute format('create unique index %I on %I (stream, version)', child || '_stream', child);
  end if;
  if not exists (select from pg_inherits where inhrelid = to_regclass(child)) then
    execute format('alter table %I attach partition %I for values from (%s) to (%s)', of_partition, child, low, high);
  end if;
end $$;

-- Creates the ledger's child of one day.
create function souk_add_ledger_child(b int) returns void language plpgsql as $$
declare
  child text := format('ledger_%s', b);
begin
  if exists (select from pg_inherits where inhrelid = to_regclass(child)) then return; end if;
  perform pg_advisory_xact_lock(hashtext('souk_add_child'));
  if to_regclass(child) is null then
    execute format('create table %I (like ledger, check (bucket = %s))', child, b);
    execute format('create unique index %I on %I (region, partition, request_id, stream)', child || '_key', child);
  end if;
  if not exists (select from pg_inherits where inhrelid = to_regclass(child)) then
    execute format('alter table ledger attach partition %I for values in (%s)', child, b);
  end if;
end $$;
