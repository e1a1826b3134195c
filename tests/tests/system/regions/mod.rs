//! Several regions: each writes what is at home there, reads everything, and goes on when the others are out of reach.

mod load;
mod seeded;
mod whole;
