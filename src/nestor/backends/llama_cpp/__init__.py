"""llama.cpp as a supervised child process."""
