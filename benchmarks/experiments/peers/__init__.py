"""The model beside other ways of reducing tokens, and the speed targets."""
