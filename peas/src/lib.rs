//! What a pea is and does.
