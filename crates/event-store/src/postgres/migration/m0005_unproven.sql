-- Copies whose end a third region lent while the origin was away: the last position the origin vouches for.
create table copy_unproven(
  region smallint not null,
  partition int not null,
  proven_position bigint not null,
  primary key (region, partition));
