"""What the tests of any room use: real servers, fault injection, golden files."""
