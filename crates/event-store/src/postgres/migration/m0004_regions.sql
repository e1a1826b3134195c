-- The topology in force, the same in every region; stands in the first write database only.
create table topology(
  one boolean primary key default true check (one),
  version bigint not null,
  document text not null);

-- One heartbeat per replicator, in the first write database. Which logs of other regions it copies follows from who lives.
create table replicator(
  id text collate "C" primary key,
  heartbeat_at timestamptz not null);
