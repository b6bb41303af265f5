"""What measures pfray against its peers and its own goals; never run by the tests."""
