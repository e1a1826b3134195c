-- copy $1..$4: region, partition, position and hash it is believed to end at; $5..$7: epoch, position and hash after
-- epochs $8, $9: epoch, first position; $10: now
-- streams $11, $12: stream, version; events $13..$29: the columns of event behind partition
-- ledger $30..$38: bucket, stream, request_id, method, command, fingerprint, reply, actor, recorded_ms
-- lent $39: whether the origin does not vouch for the events; the mark goes in with them, or a restored database could have one only
with fence as materialized (
  select h.epoch from partition_head h
  where h.region = $1 and h.partition = $2 and h.position = $3 and h.hash = $4 for no key update of h),
heads as (
  update partition_head h set epoch = greatest(h.epoch, $5), batch = h.batch + 1, position = $6, hash = $7
  from fence where h.region = $1 and h.partition = $2),
epochs as (
  insert into epoch_start (region, partition, epoch, first_position, owner, started_ms)
  select $1, $2, i.epoch, i.first, 'origin', $10 from fence, unnest($8::bigint[], $9::bigint[]) i(epoch, first)
  on conflict do nothing),
streams as (
  insert into stream_head as h (region, partition, stream, version)
  select $1, $2, i.* from fence, unnest($11::text[], $12::bigint[]) i(stream, version)
  on conflict (region, partition, stream) do update set version = excluded.version),
events as (
  insert into event (region, partition, position, epoch, hash, stream, version, type, schema_version, payload, event_id, request_id,
    causation_id, correlation_id, actor, hlc, traceparent, home_epoch, key_id)
  select $1, $2, i.*
  from fence, unnest($13::bigint[], $14::bigint[], $15::bytea[], $16::text[], $17::bigint[], $18::text[], $19::int[], $20::bytea[],
    $21::uuid[], $22::uuid[], $23::uuid[], $24::uuid[], $25::text[], $26::bigint[], $27::text[], $28::bigint[], $29::uuid[])
    i(position, epoch, hash, stream, version, type, schema_version, payload, event_id, request_id, causation_id, correlation_id,
      actor, hlc, traceparent, home_epoch, key_id)),
doubt as (
  insert into copy_unproven (region, partition, proven_position)
  select $1, $2, $3 from fence where $39
  on conflict do nothing),
remembered as (
  insert into ledger (region, partition, bucket, stream, request_id, method, command, fingerprint, reply, actor, recorded_ms)
  select $1, $2, i.*
  from fence, unnest($30::int[], $31::text[], $32::uuid[], $33::text[], $34::bytea[], $35::bytea[], $36::bytea[], $37::text[], $38::bigint[])
    i(bucket, stream, request_id, method, command, fingerprint, reply, actor, recorded_ms)
  on conflict do nothing)
select count(*) from fence
