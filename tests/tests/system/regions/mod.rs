mod load;
mod seeded;
