//! SeaORM entities of the read store's own tables.

/// The one row that says which installation a read database belongs to.
pub mod installation {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "read_installation")]
    pub struct Model {
        /// Always true: there is one row.
        #[sea_orm(primary_key, auto_increment = false)]
        pub singleton: bool,
        pub id: Uuid,
        pub region: i16,
        pub partitions: i32,
        pub created_ms: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Which database holds a log's rows. Stored in the first read database only.
pub mod placement {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "read_placement")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub region: i16,
        #[sea_orm(primary_key, auto_increment = false)]
        pub partition: i32,
        /// Name of the database in the configuration, never its address.
        pub database: String,
        /// Grows with every move of this log.
        pub version: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// How far a log is projected into this database.
pub mod checkpoint {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "read_checkpoint")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub region: i16,
        #[sea_orm(primary_key, auto_increment = false)]
        pub partition: i32,
        /// Term of the projector that may write.
        pub fence: i64,
        /// Name of the projector that claimed the log last; empty once it gave it up.
        pub holder: String,
        /// Epoch of the event at `position`.
        pub epoch: i64,
        pub position: i64,
        /// Running hash of the log at `position`.
        pub hash: Vec<u8>,
        /// Revision of the projections that wrote the rows.
        pub revision: i32,
        /// Number of events set aside.
        pub parked: i32,
        /// When events set aside were last replayed or dropped.
        pub repaired_ms: i64,
        /// When the checkpoint was written, Unix milliseconds.
        pub updated_ms: i64,
        /// Whether the rows were deleted to be made anew, and lack what the log has.
        pub rebuilding: bool,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}
