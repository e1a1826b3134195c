-- The functions of m0001 for several replicas at once: who waited for the lock may still believe what it looked up before,
-- that there is no such table. `if not exists` looks again.

create or replace function souk_add_event_child(r int, p int, low bigint, high bigint) returns void language plpgsql as $$
declare
  of_region text := format('event_r%s', r);
  of_partition text := format('event_r%s_p%s', r, p);
  child text := format('event_r%s_p%s_%s', r, p, low);
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
  execute format('create table if not exists %I (like event, check (region = %s and partition = %s and position >= %s and position < %s))',
    child, r, p, low, high);
  execute format('create unique index if not exists %I on %I (position)', child || '_position', child);
  execute format('create unique index if not exists %I on %I (stream, version)', child || '_stream', child);
  if not exists (select from pg_inherits where inhrelid = child::regclass) then
    execute format('alter table %I attach partition %I for values from (%s) to (%s)', of_partition, child, low, high);
  end if;
end $$;

create or replace function souk_add_ledger_child(b int) returns void language plpgsql as $$
declare
  child text := format('ledger_%s', b);
begin
  if exists (select from pg_inherits where inhrelid = to_regclass(child)) then return; end if;
  perform pg_advisory_xact_lock(hashtext('souk_add_child'));
  execute format('create table if not exists %I (like ledger, check (bucket = %s))', child, b);
  execute format('create unique index if not exists %I on %I (region, partition, request_id, stream)', child || '_key', child);
  if not exists (select from pg_inherits where inhrelid = child::regclass) then
    execute format('alter table ledger attach partition %I for values in (%s)', child, b);
  end if;
end $$;
