"""What finished runs learnt: analyses that write data and a picture."""
