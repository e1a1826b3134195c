-- What was lost when a log went back (law 13): told by whoever still knew of it, before that was thrown away. `epoch` is
-- the one under which the log went on, `fork` the last position that stayed.
create table log_restored(
  region smallint not null,
  partition int not null,
  epoch bigint not null,
  fork bigint not null,
  lost_epoch bigint not null,
  lost_position bigint not null,
  found_ms bigint not null,
  found_by text not null,
  primary key (region, partition, epoch));

-- Lost events, as far as JetStream still had them: as they travel on the bus.
create table lost_event(
  region smallint not null,
  partition int not null,
  epoch bigint not null,
  position bigint not null,
  envelope bytea not null,
  primary key (region, partition, epoch, position));
