"""The processes of one run, on one machine or several: started, watched, and of one mind."""
