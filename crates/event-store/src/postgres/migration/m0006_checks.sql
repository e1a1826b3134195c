-- A child's check lets it be attached without a scan and is of no use afterwards: every append would read it from the catalogue, parse it
-- and hold it against its rows, for each child it writes to. What a child may hold, the bounds of the partition say.
-- Children that are there already keep theirs: taking it away would hold up the appends to them.

create or replace function souk_add_event_child(r int, p int, low bigint, high bigint) returns void language plpgsql as $$
declare
  of_region text := format('event_r%s', r);
  of_partition text := format('event_r%s_p%s', r, p);
  child text := format('event_r%s_p%s_%s', r, p, low);
  bounds text := child || '_check';
begin
  if exists (select from pg_inherits where inhrelid = to_regclass(child)) then return; end if;
  perform pg_advisory_xact_lock(hashtext('souk_add_child'));
  execute format('create table if not exists %I (like event) partition by list (partition)', of_region);
  if not exists (select from pg_inherits where inhrelid = of_region::regclass) then
    execute format('alter table event attach partition %I for values in (%s)', of_region, r);
  end if;
  execute format('create table if not exists %I (like event) partition by range (position)', of_partition);
  if not exists (select from pg_inherits where inhrelid = of_partition::regclass) then
    execute format('alter table %I attach partition %I for values in (%s)', of_region, of_partition, p);
  end if;
  execute format('create table if not exists %I (like event, constraint %I check (region = %s and partition = %s and position >= %s and position < %s))',
    child, bounds, r, p, low, high);
  execute format('create unique index if not exists %I on %I (position)', child || '_position', child);
  execute format('create unique index if not exists %I on %I (stream, version)', child || '_stream', child);
  if not exists (select from pg_inherits where inhrelid = child::regclass) then
    execute format('alter table %I attach partition %I for values from (%s) to (%s)', of_partition, child, low, high);
  end if;
  execute format('alter table %I drop constraint if exists %I', child, bounds);
end $$;

create or replace function souk_add_ledger_child(b int) returns void language plpgsql as $$
declare
  child text := format('ledger_%s', b);
  bounds text := child || '_check';
begin
  if exists (select from pg_inherits where inhrelid = to_regclass(child)) then return; end if;
  perform pg_advisory_xact_lock(hashtext('souk_add_child'));
  execute format('create table if not exists %I (like ledger, constraint %I check (bucket = %s))', child, bounds, b);
  execute format('create unique index if not exists %I on %I (region, partition, request_id, stream)', child || '_key', child);
  if not exists (select from pg_inherits where inhrelid = child::regclass) then
    execute format('alter table ledger attach partition %I for values in (%s)', child, b);
  end if;
  execute format('alter table %I drop constraint if exists %I', child, bounds);
end $$;
