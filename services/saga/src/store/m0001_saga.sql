-- The process manager. Every table begins with (region, partition), so that a partition can be moved with its log.

-- How far the log was applied, and by whom it is being applied. Everything below changes only with this row, under its
-- epoch and position.
create table saga_checkpoint(
  region smallint not null,
  partition int not null,
  epoch bigint not null default 0,
  owner text not null default '',
  lease_until timestamptz not null default '-infinity',
  position bigint not null default 0,
  log_epoch bigint not null default 0,
  hash bytea not null,
  primary key (region, partition)) with (fillfactor = 50);

-- Orders whose lines are still needed, as they were placed.
create table saga_order(
  region smallint not null,
  partition int not null,
  order_id text collate "C" not null,
  schema_version int not null,
  placed bytea not null,
  primary key (region, partition, order_id));

-- The outbox: steps that are due and not answered definitely.
create table saga_step(
  region smallint not null,
  partition int not null,
  position bigint not null,
  kind smallint not null,
  subject text collate "C" not null,
  cause uuid not null,
  time_ms bigint not null,
  attempt int not null,
  traceparent text not null,
  schema_version int,
  placed bytea,
  primary key (region, partition, position, kind));

create table saga_timer(
  region smallint not null,
  partition int not null,
  kind smallint not null,
  subject text collate "C" not null,
  due_ms bigint not null,
  position bigint not null,
  cause uuid not null,
  attempt int not null,
  traceparent text not null,
  primary key (region, partition, kind, subject));
create index saga_timer_due on saga_timer (region, due_ms, partition);
