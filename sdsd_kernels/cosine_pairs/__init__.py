"""What the upper triangle of cosines holds, without storing it: histogram, row sums, pairs past a threshold."""
