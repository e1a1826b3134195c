//! What queries read: owned by the query side.
