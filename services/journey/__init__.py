"""Where does each customer, and each touchpoint, stand?"""
